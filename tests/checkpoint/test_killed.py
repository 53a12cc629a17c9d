"""Writers that are killed at any moment cost nothing that was announced as saved."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from command import ROOT
from mindmodel.checkpoint.load import damage_of, newest_checkpoint
from mindmodel.checkpoint.retention import list_checkpoints
from writers import content


class Writers:
    """The processes, from their start to their death."""

    def __init__(self, folder, ranks, first_step):
        command = [sys.executable, ROOT / "tests" / "writers.py", folder, str(ranks), str(first_step)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.lines = []
        while sum(line.startswith("rank") for line in self.lines) < ranks:
            self.lines.append(self.process.stdout.readline())
            assert self.lines[-1], self.lines

    def kill_after(self, seconds):
        """Kill them all; gives the steps that were announced."""
        time.sleep(seconds)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.lines += self.process.stdout.read().splitlines()
        self.process.wait()
        return [int(line.split()[1]) for line in self.lines if line.startswith("saved")]


@pytest.mark.parametrize("trials", [12, pytest.param(100, marks=pytest.mark.long)])
def test_a_kill_at_a_random_moment_leaves_the_newest_checkpoint_that_was_announced(tmp_path, trials):
    draw, newest = random.Random(trials), 0
    seen = set()
    for _ in range(trials):
        announced = Writers(tmp_path, draw.choice((1, 2, 3)), newest + 1).kill_after(draw.random() * 0.2)
        seen |= {path.name.partition(".")[2][-3:] for path in tmp_path.iterdir()}
        assert [fault for step in list_checkpoints(tmp_path) for fault in damage_of(tmp_path / f"step_{step}")[1]] == []
        checkpoint = newest_checkpoint(tmp_path, pytest.fail)
        assert (checkpoint.index.step if checkpoint else 0) >= max(announced, default=newest)
        if checkpoint:
            newest = checkpoint.index.step
            for name, array in content(newest).items():
                np.testing.assert_array_equal(checkpoint.weights()[name], array)
            checkpoint.release()
    assert newest > trials / 4 and "tmp" in seen  # some were killed while they wrote
