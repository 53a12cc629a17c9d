"""What is asked for is read, and no more: a view where it lies in one file, put together where it does not."""

import numpy as np
import pytest

from crew import held, save_alone, save_by_all
from mindmodel.checkpoint.blocks import Block
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.shares import Placement
from mindmodel.checkpoint.tensors import Float32Blocks, HeldTensors, in_turn
from mindmodel.errors import CheckpointError
from mindmodel.parallel.mesh import Mesh

WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)
QUARTERS = {"w": Placement(shape=(4, 6), dtype="float32", axes=("dp", "tp"), stage=0)}
ROWS = {"w": Placement(shape=(4, 6), dtype="float32", axes=("tp", None), stage=0)}


@pytest.fixture
def quarters(tmp_path):
    """The folder of a checkpoint whose tensor lies in four files, one for each of 2 x 2 ranks."""
    mesh = Mesh(dp=2, tp=2)
    return save_by_all(tmp_path, 1, held({"w": WHOLE}, QUARTERS, mesh), QUARTERS, mesh)


@pytest.fixture
def weights(quarters):
    return open_checkpoint(quarters, verify=False).weights()


def test_a_tensor_that_lies_whole_in_a_file_is_a_read_only_view(tmp_path):
    array = open_checkpoint(save_alone(tmp_path, 1, {"w": WHOLE})).weights()["w"]
    np.testing.assert_array_equal(array, WHOLE, strict=True)
    assert not array.flags.writeable and not array.flags.owndata


def test_a_tensor_in_slices_is_put_together(weights):
    np.testing.assert_array_equal(weights["w"], WHOLE, strict=True)
    assert not weights["w"].flags.writeable


def test_a_lazy_tensor_reads_later(weights):
    lazy = weights.lazy("w")
    assert (lazy.shape, lazy.dtype) == ((4, 6), np.float32) and lazy.read()[0, 1] == 1


def test_to_ask_whether_a_tensor_is_there_makes_none():
    made = []
    tensors = Float32Blocks.of_whole({"w": (4, 6)}, made.append)
    assert "w" in tensors and "v" not in tensors
    assert "w" in HeldTensors(tensors, ROWS, Mesh(tp=4), 1) and made == []


def test_arrays_come_in_turn_while_the_next_is_fetched(weights, monkeypatch):
    fetched, fetch = [], weights.fetch
    monkeypatch.setattr(weights, "fetch", lambda name: fetched.append(name) or fetch(name))
    ((name, array),) = in_turn(weights, ["w"])
    assert name == "w" and fetched == ["w"]
    np.testing.assert_array_equal(array, WHOLE)
    assert list(in_turn({"a": 1, "b": 2}, ["b", "a"])) == [("b", 2), ("a", 1)] and list(in_turn(weights, [])) == []


def test_what_a_rank_holds_comes_in_turn_too(weights):
    ((_, array),) = in_turn(HeldTensors(weights, ROWS, Mesh(tp=4), 1), ["w"])
    np.testing.assert_array_equal(array, WHOLE[1:2])


def test_what_is_made_comes_in_turn_in_float32_and_what_it_is_made_of_is_fetched():
    fetched, half = [], WHOLE.astype(np.float16)
    tensors = Float32Blocks({"w": (4, 6)}, lambda _, block: half[block.place], lambda *block: fetched.append(block))
    ((_, array),) = in_turn(HeldTensors(tensors, ROWS, Mesh(tp=2), 1), ["w"])
    np.testing.assert_array_equal(array, WHOLE[2:], strict=True)
    assert fetched == [("w", Block(offset=(2, 0), shape=(2, 6)))]
    np.testing.assert_array_equal(tensors.block("w", Block(offset=(0, 1), shape=(1, 2))), [[1, 2]])


def test_a_damaged_file_is_named_when_it_is_fetched(quarters, weights):
    (quarters / "weights-rank3.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="weights-rank3.safetensors: no whole safetensors file"):
        list(in_turn(weights, ["w"]))
