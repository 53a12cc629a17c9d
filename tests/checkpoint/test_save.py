"""A checkpoint is whole or absent; a failure costs nothing that was there; old ones go when they should."""

import errno
import json
import resource

import ml_dtypes
import numpy as np
import pytest

from crew import save_alone
from mindmodel.checkpoint import index, part
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.retention import list_checkpoints
from mindmodel.errors import CheckpointError

WEIGHTS = {"embedding.weight": np.arange(12, dtype=np.float32).reshape(4, 3), "norm.weight": np.ones(3, np.float32)}
OPTIMIZER = {
    "first_moment.norm.weight": np.zeros(3, np.float32),
    "second_moment.norm.weight": np.full(3, 2, np.float32),
    "beta1_power": np.array(0.9, np.float32),
}


def save_step(folder, step, weights=WEIGHTS, **more):
    facts = {"samples": 8 * step, "tokens": 512 * step, "optimizer": OPTIMIZER}
    return save_alone(folder, step, weights, **{**facts, **more})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path):
    path = save_step(tmp_path / "checkpoints", 3)
    checkpoint = open_checkpoint(path)
    assert path == tmp_path / "checkpoints" / "step_3"
    assert (checkpoint.index.step, checkpoint.index.samples, checkpoint.index.tokens) == (3, 24, 1536)
    for saved, loaded in ((WEIGHTS, checkpoint.weights()), (OPTIMIZER, checkpoint.optimizer())):
        assert set(saved) == set(loaded)
        for name, array in saved.items():
            np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_the_folder_holds_two_tensor_files_and_the_index(tmp_path):
    assert names(save_step(tmp_path, 3)) == ["index.json", "optimizer.safetensors", "weights.safetensors"]


def test_weights_alone_leave_out_the_optimizer_file(tmp_path):
    path = save_step(tmp_path, 0, weights={"w": np.ones(2, ml_dtypes.bfloat16)}, optimizer={})
    assert names(path) == ["index.json", "weights.safetensors"]
    checkpoint = open_checkpoint(path)
    assert checkpoint.weights()["w"].dtype == ml_dtypes.bfloat16 and len(checkpoint.optimizer()) == 0


def test_the_index_is_written_last(tmp_path, monkeypatch):
    written = []

    def noting(write):
        return lambda path, content, **more: written.append(path.name) or write(path, content, **more)

    monkeypatch.setattr(part, "write_tensors", noting(part.write_tensors))
    monkeypatch.setattr(index, "write_text_safely", noting(index.write_text_safely))
    save_step(tmp_path, 1)
    assert written == ["weights.safetensors", "optimizer.safetensors", "index.json"]


def test_an_existing_step_is_replaced(tmp_path):
    save_step(tmp_path, 1)
    path = save_step(tmp_path, 1, weights={"w": np.full(2, 5.0)})
    assert names(tmp_path) == ["step_1"] and set(open_checkpoint(path).weights()) == {"w"}


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 9, 10, 11):
        save_step(tmp_path, step, keep=2)
    assert list_checkpoints(tmp_path) == [10, 11] and names(tmp_path) == ["step_10", "step_11"]


def test_multiples_of_keep_every_are_kept_for_ever(tmp_path):
    for step in range(1, 8):
        save_step(tmp_path, step, keep=1, keep_every=3)
    assert list_checkpoints(tmp_path) == [3, 6, 7]


def test_the_one_of_the_lowest_held_out_loss_is_kept(tmp_path):
    losses = {}
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        losses.update({step: loss} if loss else {})
        save_step(tmp_path, step, keep=1, losses=losses)
    assert list_checkpoints(tmp_path) == [2, 5]
    save_step(tmp_path, 6, keep=1, losses={**losses, 6: 0.5, 7: 0.1})
    assert list_checkpoints(tmp_path) == [6]


def test_the_one_just_saved_is_kept_also_below_a_damaged_later_one(tmp_path):
    for step in (5, 10):
        save_step(tmp_path, step)
    save_step(tmp_path, 6, keep=1)
    assert list_checkpoints(tmp_path) == [6, 10]


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in (".step_3.5f.tmp", ".step_3.tmp", ".step_12.old", ".other.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    save_step(tmp_path, 4)
    assert names(tmp_path) == [".other.tmp", "step_4"]


def test_a_full_disk_costs_nothing_that_was_there(tmp_path, monkeypatch):
    save_step(tmp_path, 1)
    before = (tmp_path / "step_1" / "index.json").read_bytes()

    def fail(path, tensors, new):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(part, "write_tensors", fail)
    with pytest.raises(CheckpointError, match=r"step_2: .*No space left on device. It needs 88 bytes, [\d,]+ are free"):
        save_step(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step_1"]
    assert (tmp_path / "step_1" / "index.json").read_bytes() == before
    monkeypatch.undo()
    open_checkpoint(tmp_path / "step_1")


def test_a_refused_write_of_the_system_leaves_nothing(tmp_path):
    save_step(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save_step(tmp_path, 2, weights={"w": np.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step_1"]


def test_a_full_disk_while_replacing_keeps_the_former_step(tmp_path, monkeypatch):
    save_step(tmp_path, 1)

    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index, "write_text_safely", fail)
    with pytest.raises(CheckpointError, match="Earlier checkpoints are untouched"):
        save_step(tmp_path, 1, weights={"w": np.ones(1)})
    assert names(tmp_path) == ["step_1"] and set(open_checkpoint(tmp_path / "step_1").weights()) == set(WEIGHTS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="step_1: the checkpoint could not be written: Not a directory"):
        save_step(tmp_path / "file" / "checkpoints", 1)


def test_the_index_names_the_bytes_of_every_file(tmp_path):
    path = save_step(tmp_path, 1)
    files = json.loads((path / "index.json").read_text())["files"]
    assert files == {
        name: (path / name).stat().st_size for name in ("weights.safetensors", "optimizer.safetensors")
    }
