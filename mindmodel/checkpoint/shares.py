"""Which rank of a mesh holds which block of a tensor, and which of them writes it. Nothing of this needs the ranks.

A block that several ranks hold is written once: the blocks that the same ranks hold lie end to end, and each of the
ranks writes an equal part of them.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from typing import Iterator, Mapping, Optional, Sequence

from mindmodel.checkpoint.blocks import Block, Shape
from mindmodel.parallel.mesh import Axes, Axis, Mesh, local_shape, local_slice, names, stage_of
from mindmodel.recipe.schema import AXES
from mindmodel.tensor_file import DTYPE_OF_NAME

GRAIN_BYTES = 2**20
"""A block is cut at multiples of this, and at rows: so small ones are not cut at all."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a tensor lies over a mesh.

    Attributes:
        shape: of the whole.
        dtype: NumPy's name.
        axes: that its dims are cut over.
        stage: that holds it; None: every stage does.
    """

    shape: Shape
    dtype: str
    axes: Axes
    stage: Optional[int]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return DTYPE_OF_NAME[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class Piece(Block):
    """A block that a rank writes."""

    name: str
    rank: int


def held_block(placement: Placement, mesh: Mesh, rank: int) -> Optional[Block]:
    """What a rank holds of a tensor; None when its stage holds nothing.

    Raises:
        LayoutError: if the axes' degrees do not divide the shape.
    """
    if placement.stage not in (None, stage_of(rank, mesh)):
        return None
    place = local_slice(placement.shape, placement.axes, mesh, rank)
    return Block(offset=tuple(dim.start for dim in place), shape=local_shape(placement.shape, placement.axes, mesh))


def pieces(placements: Mapping[str, Placement], mesh: Mesh, rank: Optional[int] = None) -> Iterator[Piece]:
    """What every rank of a mesh writes, or one of them.

    Args:
        placements: by tensor name, in the same order on every rank.
        rank: whose pieces are wanted; default all.

    Raises:
        LayoutError: as held_block.
    """
    groups: dict[tuple[Axes, Optional[int]], list[str]] = {}
    for name, placement in placements.items():
        groups.setdefault((placement.axes, placement.stage), []).append(name)
    for (axes, stage), members in groups.items():
        tensors = {name: placements[name] for name in members}
        yield from _pieces_of_group(tensors, axes, stage, mesh, rank)


def _pieces_of_group(
    tensors: Mapping[str, Placement], axes: Axes, stage: Optional[int], mesh: Mesh, rank: Optional[int]
) -> Iterator[Piece]:
    """Of tensors that are cut alike and held by the same ranks."""
    shapes = {name: local_shape(tensor.shape, axes, mesh) for name, tensor in tensors.items()}
    cut = {name for axis in axes for name in names(axis)}
    free = [name for name in AXES if name not in cut and not (name == "pp" and stage is not None)]
    mine = None if rank is None else mesh.coordinates(rank)
    if mine is not None and stage not in (None, mine["pp"]):
        return
    blocks = [(name, shapes[name], tensor.itemsize) for name, tensor in tensors.items()]
    shares = list(_shared_out(blocks, mesh.degree(tuple(free))))
    fixed = {} if stage is None else {"pp": stage}
    for place in _places([name for name in AXES if name in cut], mesh, mine):
        indices = [_index(axis, place, mesh) for axis in axes]
        holders = [mesh.rank(**fixed, **place, **other) for other in _places(free, mesh, None)]
        for holder, name, first, shape in shares:
            if rank in (None, holders[holder]):
                offset = tuple(map(operator.mul, indices, shapes[name]))
                if first:
                    offset = (offset[0] + first, *offset[1:])
                yield Piece(name=name, rank=holders[holder], offset=offset, shape=shape)


def _places(axes: Sequence[str], mesh: Mesh, mine: Optional[Mapping[str, int]]) -> Iterator[dict[str, int]]:
    """All coordinates on some axes, or a rank's own."""
    ranges = [range(getattr(mesh, name)) if mine is None else (mine[name],) for name in axes]
    return (dict(zip(axes, place)) for place in itertools.product(*ranges))


def _index(axis: Axis, place: Mapping[str, int], mesh: Mesh) -> int:
    """Which piece of a dim stands at a place."""
    index = 0
    for name in names(axis):
        index = index * getattr(mesh, name) + place[name]
    return index


def _shared_out(blocks: Sequence[tuple[str, Shape, int]], count: int) -> Iterator[tuple[int, str, int, Shape]]:
    """Blocks of (name, shape, itemsize), end to end, shared out evenly: holder, name, first row and shape of a part."""
    total = sum(math.prod(shape) * itemsize for _, shape, itemsize in blocks)
    reached, holder = 0, 0
    for name, shape, itemsize in blocks:
        rows, row_bytes = (shape[0] if shape else 1), math.prod(shape[1:]) * itemsize
        end, first = reached + rows * row_bytes, 0
        while (limit := total * (holder + 1) // count) < end and holder < count - 1:
            cut = max(first, _nearest_cut(limit - reached, rows, row_bytes))
            if cut > first:
                yield holder, name, first, _of_rows(cut - first, shape)
            first, holder = cut, holder + 1
        if first < rows or not rows:
            yield holder, name, first, _of_rows(rows - first, shape)
        reached = end


def _of_rows(rows: int, shape: Shape) -> Shape:
    """The shape of some rows of a block; a scalar is one row."""
    return (rows, *shape[1:]) if shape else ()


def _nearest_cut(position: int, rows: int, row_bytes: int) -> int:
    """The number of rows whose end is next to a byte position."""
    grain = max(1, GRAIN_BYTES // row_bytes)
    return min(rows, (position + grain * row_bytes // 2) // (grain * row_bytes) * grain)
