"""The device mesh: degrees, and where each rank stands. Pure Python.

Ranks count the axes row by row, pp outermost and tp innermost, so that tp neighbours share a node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Union

from mindmodel.errors import LayoutError
from mindmodel.recipe.schema import AXES, ParallelSection

Axis = Union[None, str, tuple[str, ...]]
"""What one dim of a tensor is cut over: nothing, one axis, or several, outermost first."""

Axes = tuple[Axis, ...]
"""One entry a dim."""

Shape = tuple[int, ...]


def names(axis: Axis) -> tuple[str, ...]:
    """The axes that a dim is cut over, outermost first."""
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else axis


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Degrees of the axes: pipeline stages, data, context and tensor parallelism."""

    pp: int = 1
    dp: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def num_devices(self) -> int:
        """Ranks in all."""
        return self.pp * self.stage_size

    @property
    def stage_size(self) -> int:
        """Ranks of one pipeline stage; they are neighbours."""
        return self.dp * self.cp * self.tp

    def degree(self, axis: Axis) -> int:
        """Into how many pieces a dim on this axis is cut."""
        return math.prod(getattr(self, name) for name in names(axis))

    def coordinates(self, rank: int) -> dict[str, int]:
        """The position of a rank on each axis."""
        found = {}
        for name in reversed(AXES):
            rank, found[name] = divmod(rank, getattr(self, name))
        return found

    def rank(self, **coordinates: int) -> int:
        """The rank at these positions; an axis that is not named is 0."""
        rank = 0
        for name in AXES:
            rank = rank * getattr(self, name) + coordinates.get(name, 0)
        return rank

    def group(self, rank: int, axis: Axis) -> tuple[int, ...]:
        """The ranks that differ from this one in these axes only, itself among them, in order."""
        mine, moving = self.coordinates(rank), names(axis)
        others = (self.coordinates(other) for other in range(self.num_devices))
        same = [other for other in others if all(other[n] == mine[n] for n in AXES if n not in moving)]
        return tuple(sorted(self.rank(**other) for other in same))

    def axes_of(self, ranks: tuple[int, ...]) -> tuple[str, ...]:
        """The axes in which the ranks of a group differ."""
        places = [self.coordinates(rank) for rank in ranks]
        return tuple(name for name in AXES if len({place[name] for place in places}) > 1)


def mesh_of(parallel: ParallelSection) -> Mesh:
    """The mesh of a recipe whose degrees are all numbers."""
    return Mesh(**{name: int(degree) for name, degree in parallel.degrees.items()})


def local_shape(shape: Shape, axes: Axes, mesh: Mesh) -> Shape:
    """Shape of one rank's slice of a tensor whose dims are cut over mesh axes.

    Raises:
        LayoutError: if a dim is not divisible by the product of its axes' degrees.
    """
    for dim, (size, axis) in enumerate(zip(shape, axes)):
        if size % mesh.degree(axis):
            raise LayoutError(
                f"tensor {list(shape)}: dim {dim} of size {size} cannot be cut over {'*'.join(names(axis))}="
                f"{mesh.degree(axis)}. Use degrees whose product divides {size}."
            )
    return tuple(size // mesh.degree(axis) for size, axis in zip(shape, axes))


def local_slice(shape: Shape, axes: Axes, mesh: Mesh, rank: int) -> tuple[slice, ...]:
    """Where a rank's slice lies in the whole tensor.

    Raises:
        LayoutError: as local_shape.
    """
    place, found = mesh.coordinates(rank), []
    for size, axis in zip(local_shape(shape, axes, mesh), axes):
        index = 0
        for name in names(axis):
            index = index * getattr(mesh, name) + place[name]
        found.append(slice(index * size, (index + 1) * size))
    return tuple(found)


def stage_of(rank: int, mesh: Mesh) -> int:
    """The pipeline stage that a rank belongs to."""
    return rank // mesh.stage_size


def balanced_stages(
    num_layers: int, num_stages: int, given: Optional[tuple[int, ...]] = None, head: float = 0.0
) -> tuple[int, ...]:
    """Layers of each stage: as given, else so that the slowest stage has as little to do as can be.

    What does not divide goes to the middle stages: the first also holds the embedding.

    Args:
        head: what the last stage computes beside its layers, in layers.
    """
    if given is not None:
        return given
    layers = [1] * num_stages
    for _ in range(num_layers - num_stages):
        costs = [*layers[:-1], layers[-1] + head]
        layers[min(range(num_stages), key=lambda stage: (costs[stage], abs(2 * stage - (num_stages - 1))))] += 1
    return tuple(layers)
