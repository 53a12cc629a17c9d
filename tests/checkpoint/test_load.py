"""A checkpoint is compared with its index before it is used; a damaged one is named and passed over."""

import dataclasses
import hashlib

import numpy as np
import pytest

from crew import held, save_alone, save_by_all
from mindmodel.checkpoint import load
from mindmodel.checkpoint.index import Index
from mindmodel.checkpoint.load import damage_of, newest_checkpoint, open_checkpoint
from mindmodel.checkpoint.retention import list_checkpoints
from mindmodel.checkpoint.shares import Placement
from mindmodel.errors import CheckpointError
from mindmodel.parallel.mesh import Mesh
from mindmodel.tensor_file import write_tensors


def save_step(folder, step, value=0.0):
    weights, optimizer = {"w": np.full(5, value, np.float32)}, {"beta1_power": np.array(0.9)}
    return save_alone(folder, step, weights, optimizer=optimizer)


def flip_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


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
    quarters, mesh = {"w": Placement(shape=(4, 6), dtype="float32", axes=("dp", "tp"), stage=0)}, Mesh(dp=2, tp=2)
    path = save_by_all(tmp_path, 1, held({"w": np.zeros((4, 6), np.float32)}, quarters, mesh), quarters, mesh)
    flip_last_byte(path / "weights-rank2.safetensors")
    with pytest.raises(CheckpointError, match="step_1/weights-rank2.safetensors: damaged: SHA-256 .*, the index says"):
        open_checkpoint(path)


def test_all_damage_of_a_large_file_is_named_though_many_threads_look(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "BATCH_BYTES", 20)
    weights = {f"w{number}": np.full(5, number, np.float32) for number in range(6)}
    path = save_alone(tmp_path, 1, weights)
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    content[-41] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    _, faults = damage_of(path)
    assert [fault.partition("tensor ")[2][:4] for fault in faults] == ["'w3'", "'w5'"]
