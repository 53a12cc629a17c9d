"""Launches and kills at random moments leave nothing behind. The tool does more of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "launch_soak.py"


@pytest.mark.long
def test_eight_launches_leave_nothing_behind():
    done = subprocess.run([sys.executable, str(TOOL), "8", "--longest", "25"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("8 launches, nothing left behind\n")
