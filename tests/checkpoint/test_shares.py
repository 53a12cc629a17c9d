"""Every element is written by one rank that holds it, and all ranks write as much as they can share."""

import math
import random
from collections import Counter

import pytest

from crew import random_mesh, random_placements, random_shapes
from mindmodel.checkpoint import shares
from mindmodel.checkpoint.blocks import common, fault_of_blocks
from mindmodel.checkpoint.shares import Placement, held_block, pieces
from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import Mesh


@pytest.fixture(params=[4, 64, 2**20])
def grain(request, monkeypatch):
    monkeypatch.setattr(shares, "GRAIN_BYTES", request.param)


def written(placements, mesh):
    """Bytes of each rank."""
    size = Counter(dict.fromkeys(range(mesh.num_devices), 0))
    for piece in pieces(placements, mesh):
        size[piece.rank] += math.prod(piece.shape) * placements[piece.name].itemsize
    return [size[rank] for rank in range(mesh.num_devices)]


def test_pieces_make_up_every_tensor_and_each_lies_in_what_its_rank_holds(grain):
    draw = random.Random(1)
    for _ in range(60):
        mesh = random_mesh(draw, 24)
        placements = random_placements(draw, mesh, random_shapes(draw))
        found = list(pieces(placements, mesh))
        assert len({(piece.name, piece.rank) for piece in found}) == len(found)
        for name, placement in placements.items():
            mine = [piece for piece in found if piece.name == name]
            assert fault_of_blocks(mine, placement.shape) == "", (mesh, placement, mine)
            for piece in mine:
                held = held_block(placement, mesh, piece.rank)
                assert held is not None
                assert 0 in piece.shape or common(piece, held).shape == piece.shape


def test_a_rank_finds_its_pieces_alone(grain):
    draw = random.Random(2)
    for _ in range(20):
        mesh = random_mesh(draw)
        placements = random_placements(draw, mesh, random_shapes(draw))
        found = list(pieces(placements, mesh))
        for rank in range(mesh.num_devices):
            assert list(pieces(placements, mesh, rank)) == [piece for piece in found if piece.rank == rank]


def test_copies_are_shared_out_to_within_a_grain(monkeypatch):
    monkeypatch.setattr(shares, "GRAIN_BYTES", 40)
    axes = (None, None)
    whole = {f"w{size}": Placement(shape=(size, 10), dtype="float32", axes=axes, stage=0) for size in (5, 90, 7)}
    sizes = written(whole, Mesh(dp=7))
    assert sum(sizes) == 102 * 40 and max(sizes) - min(sizes) <= 80


def test_ranks_that_hold_the_same_slice_share_it(monkeypatch):
    monkeypatch.setattr(shares, "GRAIN_BYTES", 4)
    columns = {"w": Placement(shape=(6, 8), dtype="float32", axes=(None, "tp"), stage=1)}
    assert written(columns, Mesh(pp=2, dp=3, tp=2)) == [0] * 6 + [32] * 6


def test_what_is_small_stays_in_one_piece():
    norms = {f"n{index}": Placement(shape=(4096,), dtype="float32", axes=(None,), stage=0) for index in range(50)}
    assert [piece.shape for piece in pieces(norms, Mesh(dp=8))] == [(4096,)] * 50


def test_what_every_stage_holds_is_written_once():
    scalar = {"beta1_power": Placement(shape=(), dtype="float32", axes=(), stage=None)}
    assert len(list(pieces(scalar, Mesh(pp=2, dp=2)))) == 1


def test_a_stage_holds_its_own_only():
    placement = Placement(shape=(4,), dtype="float32", axes=(None,), stage=1)
    blocks = [held_block(placement, Mesh(pp=2, dp=2), rank) for rank in range(4)]
    assert [block is not None for block in blocks] == [False, False, True, True]


def test_degrees_that_do_not_divide_are_refused():
    with pytest.raises(LayoutError, match=r"dim 0 of size 5 cannot be cut over tp=2"):
        list(pieces({"w": Placement(shape=(5,), dtype="float32", axes=("tp",), stage=0)}, Mesh(tp=2)))
