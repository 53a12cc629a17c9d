"""A run that is killed again and again, also while it saves, ends bitwise as one that was not."""

from __future__ import annotations

import random
import signal
import time

import pytest

OVERRIDES = ("model.vocab_size=60000", "checkpoint.every=1", "checkpoint.keep=2", "train.steps=120")
NUM_KILLS, NUM_KILLS_WHILE_SAVING = 10, 5
LONGEST_WAIT_S = 10.0


def temporary_checkpoints(run) -> list[str]:
    return [path.name for path in run.path.glob("checkpoints/.step_*.tmp")]


def kill_while_saving(running, run, draw) -> None:
    """Wait for a few checkpoints, then for the folder of one that is being written."""
    first, seen = max(run.steps, default=0) if (run.path / "checkpoints").exists() else 0, draw.randint(1, 3)
    while True:
        assert running.process.poll() is None, running.output
        names = temporary_checkpoints(run)
        if names and int(names[0].split("_")[1].split(".")[0]) >= first + seen:
            return running.process.kill()


def kill_at_any_moment(running, run, draw) -> None:
    """From the start of the process to well after its first steps."""
    time.sleep(draw.uniform(0.2, LONGEST_WAIT_S))
    running.process.kill()


@pytest.mark.long
def test_killed_ten_times_and_resumed_it_ends_as_if_nothing_had_happened(command, capsys):
    start, draw = time.monotonic(), random.Random(7)
    done = command.train("whole", *OVERRIDES, "checkpoint.every=0")
    assert done.returncode == 0, done.stderr
    run, while_saving, lost = command.run("killed"), 0, []
    kinds = [kill_while_saving] * NUM_KILLS_WHILE_SAVING + [kill_at_any_moment] * (NUM_KILLS - NUM_KILLS_WHILE_SAVING)
    draw.shuffle(kinds)
    for kill in kinds:
        running = command.start("train", "recipe.yaml", "runtime.output=killed", *OVERRIDES)
        kill(running, run, draw)
        assert running.process.wait() == -signal.SIGKILL, running.output
        while_saving += bool(temporary_checkpoints(run))
        lost.append(running.output)
    done = command.train("killed", *OVERRIDES)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        seconds = time.monotonic() - start
        print(f"\n{NUM_KILLS} kills, {while_saving} of them inside a save, {seconds:.0f} s")
    assert while_saving >= 3
    assert run.tensors(120) == command.run("whole").tensors(120)
    assert run.losses == command.run("whole").losses
    assert run.hidden() == [] and run.steps == [119, 120]
    assert all(".tmp" not in output and "passed over" not in output for output in [*lost, done.stdout])
