"""metrics.jsonl: appended row by row, cut back to a checkpoint's step, never silently damaged."""

from __future__ import annotations

import json

import pytest

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.errors import CheckpointError
from mindmodel.train.metrics import Metrics, Utilisation, cut_back, read_metrics


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_run_without_metrics_has_no_rows(file):
    assert read_metrics(file) == []
    cut_back(file, 3)
    assert not file.exists()


def test_rows_after_a_step_are_dropped_and_those_of_no_step_stay(file):
    written = [{"from_step": 0}, {"step": 1, "loss": 0.1}, {"step": 2}, {"step": 2, "eval_loss": 3.0}, {"step": 3}]
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    cut_back(file, 2)
    assert read_metrics(file) == written[:4]
    cut_back(file, 0)
    assert read_metrics(file) == written[:1]


def test_a_number_is_the_same_after_cutting_back(file):
    file.write_text('{"step": 1, "loss": 0.1234567890123456789}\n')
    loss = read_metrics(file)[0]["loss"]
    cut_back(file, 1)
    assert read_metrics(file)[0]["loss"] == loss


def test_a_last_line_that_a_killed_process_left_unfinished_is_dropped(file):
    file.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]
    cut_back(file, 5)
    assert file.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b"7", b"\xff\xfe", b'{"step": "two"}', b'{"step": null}', b"[" * 100_000]
)
def test_another_damaged_line_is_named(line, file):
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="metrics.jsonl, line 2: not a row of metrics. Mend or remove the file"):
        read_metrics(file)


def test_rows_are_on_disk_when_they_were_written_and_hold_null_for_what_is_not_finite(tmp_path, file):
    with Metrics(RunFolder(tmp_path), 0) as metrics:
        metrics.describe({"from_step": 0})
        metrics.write(1, {"loss": float("nan"), "lr": 0.5, "mfu": float("inf")})
        text = file.read_text()
    assert text == '{"from_step": 0}\n{"step": 1, "loss": null, "lr": 0.5, "mfu": null}\n'
    (events,) = (tmp_path / "events").iterdir()
    assert b"lr" in events.read_bytes() and b"loss" not in events.read_bytes()


def test_a_full_disk_is_one_message(tmp_path):
    with pytest.raises(CheckpointError, match="No space left on device; [0-9,]+ bytes are free. The checkpoints"):
        with Metrics(RunFolder(tmp_path), 0) as metrics:
            metrics._events._writer._py_recordio_writer._writer = open("/dev/full", "wb")
            metrics.write(1, {"loss": 1.0})


def test_a_full_disk_is_noticed_in_the_rows_too(tmp_path):
    with Metrics(RunFolder(tmp_path), 0) as metrics, open("/dev/full", "wb", buffering=0) as full:
        metrics._file.close()
        metrics._file = full
        with pytest.raises(CheckpointError, match="metrics.jsonl and events: could not be written: No space left on"):
            metrics.describe({"from_step": 0})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "events").write_text("")
    with pytest.raises(CheckpointError, match="metrics.jsonl and events: could not be written: File exists"):
        Metrics(RunFolder(tmp_path), 0)


def test_utilisation_is_a_share_of_a_peak_that_is_named():
    utilisation = Utilisation(flop_per_token=1e6, formula="6 N", peak_flops=1e11, peak_name="measured")
    assert utilisation.mfu(50_000) == pytest.approx(0.5)
    assert utilisation.row() == {
        "mfu_formula": "6 N", "flop_per_token": 1e6, "peak_flops": 1e11, "peak": "measured"
    }
