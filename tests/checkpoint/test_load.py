"""A checkpoint is compared with its index before it is used; a damaged one is named and passed over."""

import dataclasses
import hashlib

import numpy as np
import pytest

from mindmodel.checkpoint import load
from mindmodel.checkpoint.index import Index, TensorEntry
from mindmodel.checkpoint.load import (
    HeldTensors,
    damage_of,
    in_turn,
    list_checkpoints,
    newest_checkpoint,
    open_checkpoint,
)
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.checkpoint.shares import Placement
from mindmodel.checkpoint.slices import Slice, Slices
from mindmodel.errors import CheckpointError
from mindmodel.parallel.mesh import Mesh
from mindmodel.tensor_file import write_tensors

WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)


def save_step(folder, step, value=0.0):
    return save_checkpoint(
        folder,
        step=step,
        samples=0,
        tokens=0,
        weights={"w": np.full(5, value, np.float32)},
        optimizer={"beta1_power": np.array(0.9)},
        recipe={},
        versions={},
        random={},
        layout={},
        keep=99,
        keep_every=0,
    )


def flip_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def save_slices(folder, slices):
    """A checkpoint whose tensor lies in four files, one for each of 2 x 2 ranks."""
    folder.mkdir()
    files = {}
    for part in slices:
        files[part.file] = write_tensors(folder / part.file, {"w": WHOLE[part.place]}).num_bytes
    index = Index(
        step=1,
        samples=0,
        tokens=0,
        layout={"dp": 2, "tp": 2},
        recipe={},
        versions={},
        random={},
        files=files,
        tensors={"w": TensorEntry(shape=(4, 6), dtype="float32", slices=Slices.of(*slices))},
    )
    index.write(folder)


def quarter(row, column):
    """One of the four slices."""
    block = WHOLE[2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
    return Slice(
        file=f"weights-{row}{column}.safetensors",
        offset=(2 * row, 3 * column),
        shape=block.shape,
        sha256=hashlib.sha256(block.tobytes()).hexdigest(),
    )


SLICES = [quarter(row, column) for row in (0, 1) for column in (0, 1)]


def test_a_tensor_that_lies_whole_in_a_file_is_a_read_only_view(tmp_path):
    array = open_checkpoint(save_step(tmp_path, 1, 7)).weights()["w"]
    np.testing.assert_array_equal(array, np.full(5, 7, np.float32), strict=True)
    assert not array.flags.writeable and not array.flags.owndata


def test_a_tensor_in_slices_is_put_together(tmp_path):
    save_slices(tmp_path / "step_1", SLICES)
    weights = open_checkpoint(tmp_path / "step_1").weights()
    np.testing.assert_array_equal(weights["w"], WHOLE, strict=True)
    assert not weights["w"].flags.writeable


def test_a_lazy_tensor_reads_later(tmp_path):
    lazy = open_checkpoint(save_step(tmp_path, 1, 7)).weights().lazy("w")
    assert (lazy.shape, lazy.dtype) == ((5,), np.float32) and lazy.read()[0] == 7


def test_steps_are_listed_by_number_and_nothing_else_is(tmp_path):
    for step in (10, 9, 0):
        save_step(tmp_path, step)
    for name in (".step_3.tmp", ".step_4.old", "step_x", "step_05", "step_7.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_8").write_text("a file")
    assert list_checkpoints(tmp_path) == [0, 9, 10]
    assert list_checkpoints(tmp_path / "none") == []


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_a_flipped_bit_is_found_before_anything_is_used(tmp_path, file):
    path = save_step(tmp_path, 1)
    flip_last_byte(path / file)
    with pytest.raises(CheckpointError, match=f"step_1/{file}: damaged: SHA-256 .*, the index says"):
        open_checkpoint(path)
    open_checkpoint(path, verify=False)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_named(tmp_path, verify):
    path = save_step(tmp_path, 1)
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"weights.safetensors: damaged: \d+ bytes, the index says \d+"):
        open_checkpoint(path, verify)


def test_a_missing_file_is_named(tmp_path):
    path = save_step(tmp_path, 1)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="'optimizer.safetensors' is missing"):
        open_checkpoint(path)


def test_a_missing_or_damaged_index_is_named(tmp_path):
    path = save_step(tmp_path, 1)
    (path / "index.json").write_text("{")
    with pytest.raises(CheckpointError, match="index.json: not JSON"):
        open_checkpoint(path)
    (path / "index.json").unlink()
    with pytest.raises(CheckpointError, match="index.json: there is no such file"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="step_2: there is no such checkpoint folder"):
        open_checkpoint(tmp_path / "step_2")


@pytest.mark.parametrize(
    "tensors, fault",
    [
        ({"v": np.zeros(5, np.float32)}, "tensor 'w' is missing"),
        ({"w": np.zeros(4, np.float32)}, r"tensor 'w' is \(\(4,\), 'float32'\), the index says \(\(5,\), 'float32'\)"),
        ({"w": np.zeros(5, np.float16)}, "'float16'"),
    ],
)
def test_a_file_that_does_not_hold_what_the_index_says_is_refused(tmp_path, tensors, fault):
    path = save_step(tmp_path, 1)
    index = Index.read(path)
    files = {**index.files, "weights.safetensors": write_tensors(path / "weights.safetensors", tensors).num_bytes}
    dataclasses.replace(index, files=files).write(path)
    with pytest.raises(CheckpointError, match=fault):
        open_checkpoint(path)


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    for step in (2, 9, 10):
        save_step(tmp_path, step)
    said = []
    assert newest_checkpoint(tmp_path, said.append).index.step == 10 and said == []


def test_damaged_ones_are_named_and_passed_over(tmp_path):
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    (tmp_path / "step_3" / "index.json").unlink()
    flip_last_byte(tmp_path / "step_2" / "weights.safetensors")
    said = []
    assert newest_checkpoint(tmp_path, said.append).index.step == 1
    assert len(said) == 2
    assert "step_3/index.json: there is no such file" in said[0] and "step_3 is passed over" in said[0]
    assert "step_2/weights.safetensors: damaged: SHA-256" in said[1] and "step_2 is passed over" in said[1]


def test_the_folder_of_a_process_killed_while_saving_is_never_loaded(tmp_path):
    save_step(tmp_path, 2)
    (tmp_path / "step_2").rename(tmp_path / ".step_3.tmp")
    save_step(tmp_path / "other", 1)
    (tmp_path / "other" / "step_1").rename(tmp_path / "step_1")
    said = []
    assert newest_checkpoint(tmp_path, said.append).index.step == 1 and said == []


def test_no_checkpoint_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "none", print) is None


def test_the_checksum_in_the_index_is_that_of_the_numbers(tmp_path):
    (part,) = open_checkpoint(save_step(tmp_path, 1, 7)).index.tensors["w"].slices
    assert part.sha256 == hashlib.sha256(np.full(5, 7, np.float32).tobytes()).hexdigest()


def test_the_slice_that_was_damaged_is_named(tmp_path):
    save_slices(tmp_path / "step_1", SLICES)
    flip_last_byte(tmp_path / "step_1" / SLICES[2].file)
    with pytest.raises(CheckpointError, match="step_1/weights-10.safetensors: damaged: SHA-256 .*, the index says"):
        open_checkpoint(tmp_path / "step_1")


def test_arrays_come_in_turn_while_the_next_is_fetched(tmp_path, monkeypatch):
    save_slices(tmp_path / "step_1", SLICES)
    weights, fetched = open_checkpoint(tmp_path / "step_1", verify=False).weights(), []
    fetch = weights.fetch
    monkeypatch.setattr(weights, "fetch", lambda name: fetched.append(name) or fetch(name))
    ((name, array),) = in_turn(weights, ["w"])
    assert name == "w" and fetched == ["w"]
    np.testing.assert_array_equal(array, WHOLE)
    assert list(in_turn({"a": 1, "b": 2}, ["b", "a"])) == [("b", 2), ("a", 1)] and list(in_turn(weights, [])) == []


def test_what_a_rank_holds_comes_in_turn_too(tmp_path):
    save_slices(tmp_path / "step_1", SLICES)
    placements = {"w": Placement(shape=(4, 6), dtype="float32", axes=("tp", None), stage=0)}
    weights = open_checkpoint(tmp_path / "step_1", verify=False).weights()
    ((_, array),) = in_turn(HeldTensors(weights, placements, Mesh(tp=4), 1), ["w"])
    np.testing.assert_array_equal(array, WHOLE[1:2])


def test_a_damaged_file_is_named_when_it_is_fetched(tmp_path):
    save_slices(tmp_path / "step_1", SLICES)
    weights = open_checkpoint(tmp_path / "step_1", verify=False).weights()
    (tmp_path / "step_1" / SLICES[3].file).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="weights-11.safetensors: no whole safetensors file"):
        list(in_turn(weights, ["w"]))


def test_all_damage_of_a_large_file_is_named_though_many_threads_look(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "BATCH_BYTES", 20)
    weights = {f"w{number}": np.full(5, number, np.float32) for number in range(6)}
    path = save_checkpoint(
        tmp_path, step=1, samples=0, tokens=0, weights=weights, optimizer={}, recipe={}, versions={}, random={},
        layout={}, keep=1, keep_every=0,
    )
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    content[-41] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    _, faults = damage_of(path)
    assert [fault.partition("tensor ")[2][:4] for fault in faults] == ["'w3'", "'w5'"]
