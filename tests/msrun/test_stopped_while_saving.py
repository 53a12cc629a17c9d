"""A rank that stands still in the middle of a save: the job ends with its name, and the checkpoint before is found."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from mindmodel.checkpoint.load import newest_checkpoint

LARGE = ("model.hidden_size=256", "model.ffn_size=1024", "train.steps=100000", "checkpoint.every=1")
"""Saving takes longer than a step, and never ends."""


def stop_in_a_save(job, timeout_s: float = 60) -> None:
    """Stop rank 1 when it has begun to write its part of a checkpoint and has not told rank 0 that it is done."""
    rank, end = job.worker("run", 1), time.monotonic() + timeout_s
    while time.monotonic() < end:
        for file in job.folder.glob("run/checkpoints/.step_*.tmp/*-rank1[-.]*"):
            os.kill(rank, signal.SIGSTOP)
            time.sleep(0.05)
            if file.exists() and not (file.parent / "rank_1.note").exists():
                return
            os.kill(rank, signal.SIGCONT)
    raise AssertionError("rank 1 was never seen to write")


@pytest.mark.long
def test_a_rank_that_stops_while_it_writes_is_named_and_the_checkpoint_before_is_found(job):
    running = job.start(*job.arguments("run", 2, *LARGE, "--hang-limit", 5))
    running.wait_for(": saved")
    stop_in_a_save(job)
    assert running.process.wait(60) == 3, running.output
    assert re.search(r"rank 1 on \S+ failed first: hangs: .*; its process is stopped", running.output), running.output
    assert job.processes() == {}
    announced = max(map(int, re.findall(r"step (\d+): saved", running.output)))
    assert newest_checkpoint(job.folder / "run" / "checkpoints", pytest.fail).index.step >= announced
