"""Blocks of a tensor: where two of them meet, and whether some make it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Sequence

import numpy as np

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


def fault_of_blocks(blocks: Sequence[Block], whole_shape: Shape) -> str:
    """As fault_of, of a few that are written out."""
    columns = ([block.offset for block in blocks], [block.shape for block in blocks])
    offsets, shapes = (np.array(column, int).reshape(len(blocks), len(whole_shape)) for column in columns)
    return fault_of(offsets, shapes, whole_shape)


def fault_of(offsets: np.ndarray, shapes: np.ndarray, whole_shape: Shape) -> str:
    """Why blocks, each inside the tensor, do not make it up exactly; empty when they do.

    The blocks' edges cut the last dim into bands, and what lies over a band must make up the dims before. So time grows
    with bands times blocks; in the first dim, where most cuts are, it grows as sorting does.

    Args:
        offsets, shapes: (blocks, dims).
    """
    if not whole_shape:
        return "" if len(offsets) == 1 else OVERLAP if len(offsets) else GAP
    ends = offsets + shapes
    if len(whole_shape) == 1:
        return _fault_of_line(offsets[:, 0], ends[:, 0], whole_shape[0])
    edges = np.unique(np.concatenate([[0, whole_shape[-1]], offsets[:, -1], ends[:, -1]]))
    for low, high in zip(edges, edges[1:]):
        over = (offsets[:, -1] <= low) & (ends[:, -1] >= high)
        if fault := fault_of(offsets[over, :-1], shapes[over, :-1], whole_shape[:-1]):
            return fault
    return ""


def _fault_of_line(starts: np.ndarray, ends: np.ndarray, size: int) -> str:
    """Of intervals that should lie end to end from 0 to size."""
    order = np.lexsort((ends, starts))
    starts, reached = starts[order], np.concatenate([[0], ends[order]])
    if (starts < reached[:-1]).any():
        return OVERLAP
    return GAP if (starts > reached[:-1]).any() or reached[-1] != size else ""
