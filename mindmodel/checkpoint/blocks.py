"""Blocks of a tensor: where two of them meet, and whether some make it up. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Sequence

Shape = tuple[int, ...]
OVERLAP, GAP = "two slices overlap", "its slices leave a gap"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a tensor: its first element in the whole tensor, and its shape."""

    offset: Shape
    shape: Shape

    @property
    def place(self) -> tuple[Any, ...]:
        """What indexes the whole tensor; gives a view, also of a scalar."""
        return (*(slice(start, start + size) for start, size in zip(self.offset, self.shape)), ...)

    def within(self, outer: Block) -> Block:
        """The same part, counted from the first element of a block that holds it."""
        return Block(offset=tuple(start - begin for start, begin in zip(self.offset, outer.offset)), shape=self.shape)


def whole(shape: Shape) -> Block:
    """All of a tensor."""
    return Block(offset=(0,) * len(shape), shape=shape)


def common(one: Block, other: Block) -> Optional[Block]:
    """What two blocks of a tensor share; None when that is nothing."""
    dims = list(zip(one.offset, one.shape, other.offset, other.shape))
    starts = tuple(max(start, begin) for start, _, begin, _ in dims)
    sizes = tuple(min(start + size, begin + length) - max(start, begin) for start, size, begin, length in dims)
    return Block(offset=starts, shape=sizes) if all(size > 0 for size in sizes) else None


def fault_of(blocks: Sequence[Block], shape: Shape) -> str:
    """Why blocks, each inside the tensor, do not make it up exactly; empty when they do.

    Dim by dim: the blocks' edges cut it into bands, and what lies over a band must make up the dims behind. Time grows
    with the pairs of a block and a band, not with pairs of blocks.
    """
    return _fault([(block.offset, block.shape) for block in blocks], shape, 0)


def _fault(boxes: Sequence[tuple[Shape, Shape]], shape: Shape, dim: int) -> str:
    if len(boxes) == 1:
        return "" if boxes[0][1][dim:] == shape[dim:] else GAP
    if dim == len(shape):
        return OVERLAP if boxes else GAP
    edges = sorted({0, shape[dim], *(box[0][dim] for box in boxes), *(box[0][dim] + box[1][dim] for box in boxes)})
    number = {edge: index for index, edge in enumerate(edges)}
    bands: list[list[tuple[Shape, Shape]]] = [[] for _ in edges[1:]]
    for offset, size in boxes:
        for band in range(number[offset[dim]], number[offset[dim] + size[dim]]):
            bands[band].append((offset, size))
    return next((fault for band in bands if (fault := _fault(band, shape, dim + 1))), "")
