"""Ranks write a checkpoint together, and any layout loads what any other wrote, bit by bit."""

import dataclasses
import random
import tracemalloc

import numpy as np
import pytest

from crew import held, random_arrays, random_mesh, random_placements, random_shapes, save_by_all
from mindmodel.checkpoint import shares
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.part import Crew, plan_part
from mindmodel.checkpoint.shares import Placement
from mindmodel.checkpoint.tensors import HeldTensors
from mindmodel.errors import CheckpointError
from mindmodel.parallel.mesh import Mesh

ROWS = {"w": Placement(shape=(6, 4), dtype="float32", axes=("tp", None), stage=0)}
ARRAYS = {"w": np.arange(24, dtype=np.float32).reshape(6, 4)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("grain, max_file_bytes", [(4, 2**30), (4, 100), (2**20, 300)])
def test_what_one_layout_saves_another_loads_bit_by_bit(tmp_path, monkeypatch, grain, max_file_bytes):
    monkeypatch.setattr(shares, "GRAIN_BYTES", grain)
    draw = random.Random(max_file_bytes + grain)
    for step in range(6):
        shapes = random_shapes(draw)
        arrays, mesh = random_arrays(shapes, step), random_mesh(draw, 8)
        placements = random_placements(draw, mesh, shapes)
        holding = held(arrays, placements, mesh)
        path = save_by_all(tmp_path, step, holding, placements, mesh, max_file_bytes=max_file_bytes)
        tensors = open_checkpoint(path).weights()
        for name, array in arrays.items():
            np.testing.assert_array_equal(tensors[name].view(f"u{array.itemsize}"), array.view(f"u{array.itemsize}"))
        for _ in range(4):
            other = random_mesh(draw)
            others = random_placements(draw, other, shapes)
            for rank in range(other.num_devices):
                wanted, found = held(arrays, others, other)(rank), HeldTensors(tensors, others, other, rank)
                assert list(found) == list(wanted)
                for name, array in wanted.items():
                    assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
                    assert found[name].tobytes() == array.tobytes()


def test_each_rank_writes_files_of_its_own_and_nothing_else_is_left(tmp_path):
    path = save_by_all(tmp_path, 1, held(ARRAYS, ROWS, Mesh(tp=2)), ROWS, Mesh(tp=2))
    assert names(path) == ["index.json", "slices.safetensors", "weights-rank0.safetensors", "weights-rank1.safetensors"]
    assert names(tmp_path) == ["step_1"]


def test_a_new_file_is_begun_at_the_limit(tmp_path):
    arrays = {f"{kind}{number}": np.full(5, number, np.float32) for kind in ("w", "moment") for number in range(5)}
    placements = {name: Placement(shape=(5,), dtype="float32", axes=(None,), stage=0) for name in arrays}
    path = save_by_all(tmp_path, 1, lambda rank: arrays, placements, Mesh(), max_file_bytes=45)
    assert [name for name in names(path) if name.startswith("w")] == [f"weights-{n}.safetensors" for n in range(3)]
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.weights()) == {f"w{n}" for n in range(5)}
    assert set(checkpoint.optimizer()) == {f"moment{n}" for n in range(5)}


def test_a_block_that_lies_in_one_file_is_a_view_of_it(tmp_path):
    tensors = open_checkpoint(save_by_all(tmp_path, 1, held(ARRAYS, ROWS, Mesh(tp=2)), ROWS, Mesh(tp=2))).weights()
    finer = HeldTensors(tensors, ROWS, Mesh(tp=6), 4)["w"]
    assert not finer.flags.owndata and not finer.flags.writeable
    across = HeldTensors(tensors, {"w": dataclasses.replace(ROWS["w"], axes=(None, "tp"))}, Mesh(tp=2), 1)["w"]
    np.testing.assert_array_equal(across, ARRAYS["w"][:, 2:])
    assert not across.flags.writeable


def test_loading_another_layout_holds_one_block_at_a_time(tmp_path):
    shapes = {f"w{number}": ((256, 256), "float32") for number in range(8)}
    arrays = random_arrays(shapes)
    rows, columns = ({name: Placement(shape=shape, dtype=dtype, axes=axes, stage=0) for name, (shape, dtype)
                      in shapes.items()} for axes in (("tp", None), (None, "tp")))
    tensors = open_checkpoint(save_by_all(tmp_path, 1, held(arrays, rows, Mesh(tp=4)), rows, Mesh(tp=4))).weights()
    found = HeldTensors(tensors, columns, Mesh(tp=2), 1)
    for name in found:
        found[name]  # opens the files
    tracemalloc.start()
    for name in found:
        np.testing.assert_array_equal(arrays[name][:1, 128:], found[name][:1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * 256 * 128 * 4


def test_all_differences_from_the_layout_are_in_one_message(tmp_path):
    arrays = {**ARRAYS, "v": np.zeros(3, np.float32), "x": np.zeros(2, np.float16)}
    placements = {**ROWS, "v": Placement(shape=(3,), dtype="float32", axes=(None,), stage=0)}
    placements["x"] = Placement(shape=(2,), dtype="float16", axes=(None,), stage=0)
    tensors = open_checkpoint(save_by_all(tmp_path, 1, lambda rank: arrays, placements, Mesh())).weights()
    wanted = {
        "w": dataclasses.replace(ROWS["w"], shape=(6, 6)), "u": ROWS["w"],
        "x": dataclasses.replace(placements["x"], dtype="float32"),
    }
    with pytest.raises(CheckpointError) as raised:
        HeldTensors(tensors, wanted, Mesh(), 0, "step_1")
    assert str(raised.value) == (
        "step_1: does not fit this recipe's model: 'u' is missing; 'v' is left over; 'w' is [6, 4], the model has "
        "[6, 6]; 'x' is float16, the model has float32. Use the recipe it was made with."
    )


def test_a_rank_that_holds_something_else_than_its_plan_says_is_told_so():
    crew = Crew(rank=1, mesh=Mesh(tp=2), placements=ROWS)
    found = r"'w': rank 1 holds \[2, 4\] float32, and by the plan \[3, 4\] float32. The plan's table and the "
    with pytest.raises(CheckpointError, match=found):
        plan_part({"weights": {"w": ARRAYS["w"][:2]}}, crew)


def test_a_tensor_that_a_rank_does_not_hold_is_a_gap(tmp_path):
    with pytest.raises(CheckpointError, match="what the ranks wrote does not make up the checkpoint: tensor 'w': its "):
        save_by_all(tmp_path, 2, lambda rank: {"w": ARRAYS["w"][:3]} if rank == 0 else {}, ROWS, Mesh(tp=2))
    assert names(tmp_path) == []
