"""A run that is interrupted in every orderly way ends bitwise as one that was not."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys

import pytest

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(scope="module")
def interrupted(finished):
    """The same run, stopped in every way and continued to its end; what was seen on the way."""
    seen = {"run": finished.run("interrupted")}
    arguments = ("train", "recipe.yaml", "runtime.output=interrupted")

    running = finished.start(*arguments)
    running.wait_for("compiling the training graph")
    seen["compiling"] = running.end(signal.SIGINT, timeout_s=10)

    seen["stop_at"] = finished(*arguments, "train.stop_at=30")
    for first, number in enumerate(SIGNALS, 2):
        running = finished.start(*arguments)
        running.wait_for(f"step {25 * first}: saved")
        code = running.end(number)
        seen[number] = (code, 25 * first, running.output)
    seen["end"] = finished(*arguments)
    return seen


def test_losses_norms_and_rates_are_bitwise_those_of_the_uninterrupted_run(finished, interrupted):
    expected = finished.run("run").losses
    assert len(expected) == 200
    assert interrupted["run"].losses == expected


def test_weights_and_moments_are_bitwise_those_of_the_uninterrupted_run(finished, interrupted):
    assert interrupted["run"].tensors(200) == finished.run("run").tensors(200)


def test_the_heldout_loss_stands_once_in_the_metrics(finished, interrupted):
    runs = finished.run("run"), interrupted["run"]
    expected, found = ([row for row in run.rows if "eval_loss" in row] for run in runs)
    assert len(expected) == 1 and found == expected


def test_stop_at_ends_the_process_and_not_the_run(interrupted):
    done = interrupted["stop_at"]
    assert done.returncode == 0
    assert "train.stop_at=30 reached: stopped after step 30, saved. The same command goes on" in done.stdout


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_within_a_step_or_two_and_ends_with_130(number, interrupted):
    code, after, output = interrupted[number]
    assert code == 130
    stopped = int(output.split("stopped after step ")[1].split(",")[0])
    assert after <= stopped < after + 25  # steps take a hundredth of a second
    assert f"step {stopped}: saved" in output
    names = [number.name] + ["SIGTERM"] * (number == signal.SIGINT)  # inside a step MindSpore turns one into the other
    assert any(f"{name} received: stopped after step {stopped}, saved. The same" in output for name in names)


@pytest.mark.long
def test_the_time_limit_saves_after_a_step_and_exits_with_0(command):
    done = command.train("run", "train.max_hours=1e-6")
    assert command.run("run").steps == [1]
    assert done.returncode == 0 and "train.max_hours reached: stopped after step 1, saved" in done.stdout


def test_before_the_first_step_ctrl_c_ends_the_command_at_once(interrupted):
    assert interrupted["compiling"] in (-signal.SIGINT, -signal.SIGTERM)  # a shell shows 130, or 143


def test_nothing_temporary_is_left(interrupted):
    assert interrupted["run"].hidden() == []


def test_every_start_is_recorded_with_the_step_it_went_on_from(interrupted):
    starts = [row["from_step"] for row in interrupted["run"].rows if "from_step" in row]
    assert starts[:3] == [0, 0, 30] and len(starts) == 6 and starts == sorted(starts)


def test_the_first_row_of_the_metrics_names_the_peak_behind_mfu(finished):
    first, second = finished.run("run").rows[:2]
    assert first["peak"].startswith("measured: float32 MatMul") and first["peak_flops"] > 1e8
    assert "6 N" in first["mfu_formula"]
    assert set(second) == {"step", "loss", "lr", "grad_norm", "tokens_s", "step_s", "samples", "mfu"}


def test_the_first_step_which_compiles_has_no_speed(finished):
    first, second = [row for row in finished.run("run").rows if "loss" in row][:2]
    assert (first["tokens_s"], first["step_s"], first["mfu"]) == (None, None, None)
    assert second["tokens_s"] == pytest.approx(128 / second["step_s"])


READ_EVENTS = """
import struct, sys
from pathlib import Path
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

def losses(events):
    found = {}
    for path in sorted(Path(events).iterdir()):
        data, first = path.read_bytes(), True
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12]) == (masked(data[:8]),)
            assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked(data[12 : 12 + length]),)
            event = Event.FromString(data[12 : 12 + length])
            assert first == (event.file_version == "brain.Event:2")
            data, first = data[16 + length :], False
            if event.session_log.status == SessionLog.START:
                found = {step: loss for step, loss in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    assert event.step not in found
                    found[event.step] = value.simple_value
    return found

for events in sys.argv[1:]:
    print(losses(events))
"""


def test_tensorboard_reads_the_same_losses(finished, interrupted):
    runs = finished.run("run"), interrupted["run"]
    arguments = [sys.executable, "-c", READ_EVENTS, *(run.path / "events" for run in runs)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    expected = {step: loss for step, (loss, _, _) in runs[0].losses.items()}
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()] == [expected, expected]
