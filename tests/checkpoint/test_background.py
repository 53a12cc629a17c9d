"""What is written beside the training: one thing at a time, numbers as they were, and no error goes unheard."""

import threading
from pathlib import Path

import numpy as np
import pytest

from crew import FACTS
from mindmodel.checkpoint.background import BackgroundWriter, HostMemory
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.save import checkpoint_writer
from mindmodel.errors import CheckpointError


def blocked(result):
    """A function that writes when it is let, and what lets it."""
    event = threading.Event()

    def write():
        assert event.wait(10)
        if isinstance(result, Exception):
            raise result
        return result

    return write, event.set


def test_what_is_written_is_told_once_and_only_when_it_is_whole():
    writer, (write, let) = BackgroundWriter(), blocked("step_1")
    writer.start(write)
    assert writer.finished() == []
    let()
    writer.wait()
    assert writer.finished() == ["step_1"] and writer.finished() == []


def test_an_error_is_raised_where_the_loop_asks():
    writer, (write, let) = BackgroundWriter(), blocked(CheckpointError("disk full"))
    writer.start(write)
    let()
    with pytest.raises(CheckpointError, match="disk full"):
        writer.wait()
    assert writer.finished() == []


def test_an_error_is_raised_without_waiting_too():
    writer, (write, let) = BackgroundWriter(), blocked(OSError("gone"))
    writer.start(write)
    let()
    writer.settle()
    with pytest.raises(OSError, match="gone"):
        writer.finished()


def test_the_numbers_are_those_of_the_moment_of_the_call(tmp_path):
    memory, weights, arrays = HostMemory(), {"w": np.zeros(5, np.float32)}, []
    for step in (1, 2):
        weights["w"][...] = step
        write = checkpoint_writer(
            tmp_path, step=step, weights=weights, optimizer={}, layout={}, memory=memory, **FACTS
        )
        weights["w"][...] = 9
        arrays.append(memory._arrays["w"])
        np.testing.assert_array_equal(open_checkpoint(write()).weights()["w"], np.full(5, step))
    assert arrays[0] is arrays[1]  # the room is used again


def test_a_relative_folder_is_that_of_the_call_whatever_the_working_folder_is_then(tmp_path, monkeypatch):
    """MindSpore compiles in a folder of its own, beside the writer."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    weights = {"w": np.zeros(5, np.float32)}
    write = checkpoint_writer(Path("run"), step=1, weights=weights, optimizer={}, layout={}, **FACTS)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(write()) == "run/step_1"
    assert open_checkpoint(tmp_path / "run" / "step_1").index.step == 1
