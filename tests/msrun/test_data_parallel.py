"""Data parallel on CPU processes under msrun: the run of one process, whatever their number."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from contextlib import suppress

import pytest

from command import Command, fill_with_corpus
from mindmodel.checkpoint.load import newest_checkpoint

STEPS = 50
TOLERANCE = 1e-5
SLOW_START = ("optim.warmup_steps=40", f"train.steps={STEPS}", "train.eval_every=25", "log.norms_every=25")
"""A learning rate that begins small: rounding grows with every step, and faster with large ones."""


def same_steps(one, other) -> None:
    """Loss and gradient norm, which varies more, to their tolerances; steps and learning rates exactly."""
    assert one.losses.keys() == other.losses.keys() and len(one.losses) == STEPS
    for mine, others in zip(one.losses.values(), other.losses.values()):
        assert mine[0] == pytest.approx(others[0], rel=TOLERANCE)
        assert mine[1] == pytest.approx(others[1], rel=10 * TOLERANCE)
        assert mine[2] == others[2]


def evaluations(run) -> list[tuple[int, float]]:
    return [(row["step"], row["eval_loss"]) for row in run.rows if "eval_loss" in row]


def norms(run) -> list[dict]:
    """Rows of log.norms_every."""
    return [row for row in run.rows if "norms/head/grad" in row]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, on the corpus that every job has."""
    folder = tmp_path_factory.mktemp("alone")
    fill_with_corpus(folder)
    command = Command(folder)
    done = command.train("alone", *SLOW_START)
    assert done.returncode == 0, done.stderr
    return command.run("alone")


def same_run(job, alone, dp: int) -> None:
    done = job.launch(f"dp{dp}", dp, *SLOW_START)
    assert done.returncode == 0, done.stdout + done.stderr
    run = job.run(f"dp{dp}")
    same_steps(run, alone)
    for (step, loss), (same_step, other) in zip(evaluations(run), evaluations(alone), strict=True):
        assert step == same_step and loss == pytest.approx(other, rel=TOLERANCE)
    for mine, others in zip(norms(run), norms(alone), strict=True):
        assert mine == pytest.approx(others, rel=10 * TOLERANCE) and "norms/layers.0/activation" in mine
    assert run.steps == alone.steps and [row["samples"] for row in run.rows if "samples" in row][-1] == 4 * STEPS
    assert job.processes() == {}


def test_two_processes_train_the_run_of_one(job, alone):
    same_run(job, alone, 2)


@pytest.mark.long
def test_a_step_that_is_not_finite_ends_all_processes_with_the_state_before_it_saved(job):
    done = job.launch("run", 2, "optim.peak_lr=50", "optim.warmup_steps=2", "model.num_layers=2", "train.steps=40")
    assert done.returncode == 3 and "NotFiniteError: step" in done.stdout + done.stderr
    run = job.run("run")
    step, losses = run.rows[-2]["step"], [row for row in run.rows if "loss" in row]
    assert losses[-1]["grad_norm"] is None and losses[-1]["step"] == run.steps[-1] + 1
    assert run.hidden() == [] and job.processes() == {} and step in (run.steps[-1], run.steps[-1] + 1)
    found = job("debug", "nan", run.path)
    assert found.returncode == 1 and "2 ranks have trained this run; one process makes their steps" in found.stdout
    assert f"step        {run.steps[-1] + 1}: " in found.stdout and "not finite  result of " in found.stdout


@pytest.mark.long
def test_three_processes_that_cannot_share_the_batch_evenly_train_the_run_of_one(job, alone):
    same_run(job, alone, 3)


@pytest.mark.long
def test_four_processes_and_micro_batches_train_the_run_of_one(job, alone):
    done = job.launch("dp2", 2, "parallel.micro_batches=2", *SLOW_START)
    assert done.returncode == 0, done.stdout + done.stderr
    same_steps(job.run("dp2"), alone)
    same_run(job, alone, 4)


@pytest.mark.long
def test_in_pynative_mode_two_processes_train_the_run_of_their_graphs(job):
    keys = "train.steps=6", "checkpoint.every=0", "optim.warmup_steps=2"
    for mode in ("graph", "pynative"):
        done = job.launch(mode, 2, f"runtime.mode={mode}", *keys)
        assert done.returncode == 0, done.stdout + done.stderr
    graph, pynative = job.run("graph").losses, job.run("pynative").losses
    assert len(graph) == 6
    for step, numbers in graph.items():
        assert pynative[step] == pytest.approx(numbers, rel=TOLERANCE)


def test_a_killed_worker_ends_the_job_and_the_same_command_goes_on(job):
    whole = job.launch("whole", 2, "train.steps=60")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    arguments = job.arguments("run", 2, "train.steps=60", "checkpoint.every=10")
    running = job.start(*arguments)
    killed = job.worker("run", 1)
    running.wait_for("step 10: saved")
    start = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    assert running.process.wait(60) == 3
    assert time.monotonic() - start < 15 and job.processes() == {}
    assert "rank 1" in running.output and "SIGKILL" in running.output
    again = job(*arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "going on from" in again.stdout
    assert job.run("run").losses == job.run("whole").losses


def test_a_signal_to_the_command_saves_and_another_number_of_processes_goes_on(job):
    running = job.start(*job.arguments("run", 2, "train.steps=60"))
    job.worker("run", 1)
    assert running.end(signal.SIGTERM) == 130, running.output
    assert "SIGTERM: the ranks stop after their step and save" in running.output
    assert "received: stopped after step" in running.output and job.processes() == {}
    (step,) = job.run("run").steps
    done = job.train("run", "train.steps=60")
    assert done.returncode == 0, done.stderr
    assert f"going on from {job.folder}" in done.stdout or f"step_{step}" in done.stdout
    assert list(job.run("run").losses) == list(range(1, 61))


def positions(run, step: int) -> tuple:
    """Where a checkpoint says that the run is."""
    index = json.loads((run.checkpoint(step) / "index.json").read_text())
    return index["step"], index["samples"], index["tokens"], index["random"]


@pytest.mark.long
def test_a_run_goes_on_on_other_numbers_of_processes_as_if_nothing_had_happened(job, alone):
    for number, dp in enumerate((1, 2, 4, 3, 1), 1):
        done = job.launch("run", dp, *SLOW_START, f"train.stop_at={10 * number}")
        assert done.returncode == 0, done.stdout + done.stderr
        index = json.loads((job.run("run").checkpoint(10 * number) / "index.json").read_text())
        assert (index["step"], index["samples"], index["layout"]["dp"]) == (10 * number, 40 * number, dp)
    same_steps(job.run("run"), alone)
    assert positions(job.run("run"), STEPS) == positions(alone, STEPS)
    assert job.processes() == {}


@pytest.mark.long
def test_kills_in_the_middle_of_saving_cost_nothing_that_was_announced(job):
    """Every step is saved, so that a kill finds a save under way."""
    draw, arguments = random.Random(5), job.arguments("run", 2, "train.steps=100000", "checkpoint.every=1")
    for _ in range(5):
        running = job.start(*arguments)
        running.wait_for(": saved")
        time.sleep(draw.random())
        for process in job.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        running.process.wait(60)
        announced = max(map(int, re.findall(r"step (\d+): saved", running.output)))
        assert newest_checkpoint(job.run("run").path / "checkpoints", pytest.fail).index.step >= announced


@pytest.mark.long
def test_a_rank_that_stands_still_is_named_and_all_are_ended(job):
    running = job.start(*job.arguments("run", 2, "train.steps=100000", "--hang-limit", 5))
    os.kill(job.worker("run", 1), signal.SIGSTOP)
    assert running.process.wait(60) == 3, running.output
    assert re.search(r"rank 1 on \S+ failed first: hangs: .*; its process is stopped", running.output), running.output
    assert job.processes() == {}
