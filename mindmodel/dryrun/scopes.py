"""What the scope of an operator, which MindSpore's compiler names it after, tells of its Cell and its phase."""

from __future__ import annotations

import re
from dataclasses import dataclass

GRADIENTS = "Gradients/"
"""Begins the scope of what automatic differentiation made; the rest of it may be that of another layer."""
UPDATE = ("/optimizer-", "/totals-")
"""In scopes in which gradients are clipped, checked and applied; the moments are changed in place."""
STEP = "step"
"""The place of what belongs to no Cell."""
KERNELS = ("Ascend", "CPU", "Native", "ByGather", "ByTensor")
"""Ends of the classes whose Cells hold a layer's kernels, for a device or for all; they are no place of their own."""
LAYER = re.compile(r"\blayers\.\d+")
ANY_LAYER = "layers.*"


@dataclass(frozen=True, kw_only=True)
class PlacedKernel:
    """A kernel of the step; its place is the Cell in which it stands, such as layers.3.mlp.down."""

    operator: str
    place: str
    phase: str

    def __str__(self) -> str:
        return f"{self.operator} of {self.place}, {self.phase}"

    @property
    def as_reader(self) -> str:
        """What a table says of the kernel that reads a tensor last."""
        return f"{self.operator}, {self.phase}"


def operator_of(scope: str) -> str:
    """The operator's own name: MatMul of a scope that ends in /MatMul-op12."""
    return scope.rpartition("/")[2].partition("-op")[0]


def place_of(scope: str) -> str:
    """The Cell, named as the parameters are: layers.3.mlp.down."""
    parts = [part.partition("-") for part in scope.split("/")[:-1]]
    cells = [cell for cell, dash, kind in parts if dash and cell != "network" and not kind.endswith(KERNELS)]
    return ".".join(cells[1:] if len(cells) > 1 and cells[0] == "decoder" else cells) or STEP


def part_of(place: str) -> str:
    """The layer of a Cell, or what it belongs to outside of the layers."""
    layer = LAYER.search(place)
    return layer[0] if layer else place.partition(".")[0]


def of_any_layer(name: str) -> str:
    """A Cell or a parameter without the layer's number."""
    return LAYER.sub(ANY_LAYER, name)


def is_update(scope: str) -> bool:
    """Whether the operator clips, checks or applies gradients."""
    return any(part in scope for part in UPDATE)
