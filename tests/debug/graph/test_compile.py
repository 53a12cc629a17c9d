"""compiled_networks.py in a process of its own: MindSpore asks once in a process whether it is to save graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("compiled_networks.py")


def passed(*arguments) -> str:
    """What pytest says at the end."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *arguments, str(CASES)]
    done = subprocess.run(command, cwd=CASES.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_what_is_known_of_compiled_networks():
    assert f"{CASES.read_text().count('def test_')} passed" in passed()


@pytest.mark.long
def test_what_is_known_of_compiled_networks_at_more_seeds():
    assert "4 passed" in passed("-m", "long")
