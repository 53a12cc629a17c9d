"""What MindSpore's compiler made of a training step: nodes, parameters, constants, largest tensors, casts, kernels."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from mindmodel.debug.graph.nodes import SAME_VALUE, Nodes, in_model_order
from mindmodel.debug.graph.sources import Source
from mindmodel.dryrun.graph import Graph, Node, TensorType, ValueType
from mindmodel.dryrun.kernels import CONTROL
from mindmodel.dryrun.scopes import GRADIENTS, STEP, of_any_layer, part_of, place_of
from mindmodel.errors import GraphError
from mindmodel.files import read_json

UPDATES = re.compile("Adam.*|Assign.*|Momentum|.*Update")
"""Operators that write to a parameter among their operands."""
OPTIMIZER = "/optimizer-"
"""In the scope of operators that update parameters, native ones too."""
LARGE_BYTES = 1 << 10
"""From here on a constant that is held several times is worth a line."""
PASSED_ON = (*SAME_VALUE, "Cast", "Reshape", "Transpose", "TupleGetItem")
"""Operators whose result is what they read."""
NUM_TENSORS = 20
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters alike in all layers. `num_bytes`: of all of them. `updated`: whether an operator writes to them."""

    name: str
    type: str
    count: int
    num_bytes: int
    updated: bool


@dataclass(frozen=True, kw_only=True)
class ConstantGroup:
    """Constants of the same content.

    Attributes:
        copies: how often the graph holds it.
        num_bytes: of all copies.
        place: the first Cell that reads one.
        where: file and line of that Cell's code, empty if not known.
    """

    type: str
    copies: int
    num_bytes: int
    place: str
    where: str


@dataclass(frozen=True, kw_only=True)
class TensorRow:
    """The result of a node."""

    type: str
    num_bytes: int
    kind: str
    place: str
    where: str


@dataclass(frozen=True, kw_only=True)
class CastGroup:
    """Casts between two dtypes, of values from one Cell of all layers.

    Attributes:
        origin: the Cell that computed what is cast, or the parameter that it is. The Cell of the cast itself means
            little: the compiler names casts alike after the first that it met.
    """

    before: str
    after: str
    origin: str
    count: int
    where: str


@dataclass(frozen=True, kw_only=True)
class Missing:
    """An operator that the device cannot run.

    Attributes:
        operator: its name, such as RmsNorm.
        types: of its operands.
        count: nodes of it.
        reason: of MindSpore, in one line.
        places, where: the Cells and the lines of Python that call it.
    """

    operator: str
    types: str
    count: int
    reason: str
    places: tuple[str, ...]
    where: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """A compiled graph in numbers.

    Attributes:
        kinds: nodes by operator, most frequent first, without what only orders and bundles values.
        layers: nodes by part of the model: those of the network's own code, in which a hand-written backward pass is
            counted, and those that automatic differentiation made.
        tensors: the largest results.
        compile_s: seconds of each phase, where MindSpore tells them.
        missing: operators without a kernel.
    """

    recipe: str
    device: str
    mindspore: str
    kinds: Mapping[str, int]
    layers: Mapping[str, tuple[int, int]]
    parameters: tuple[ParameterGroup, ...]
    constants: tuple[ConstantGroup, ...]
    tensors: tuple[TensorRow, ...]
    casts: tuple[CastGroup, ...]
    compile_s: Mapping[str, float]
    missing: tuple[Missing, ...]

    @property
    def num_nodes(self) -> int:
        """Of all kinds."""
        return sum(self.kinds.values())

    @property
    def duplicates(self) -> tuple[ConstantGroup, ...]:
        """Large constants that the graph holds several times."""
        return tuple(c for c in self.constants if c.copies > 1 and c.num_bytes // c.copies >= LARGE_BYTES)

    @property
    def frozen(self) -> tuple[ParameterGroup, ...]:
        """Parameters that no operator updates: a mask or a table held once for each layer is one of them."""
        return tuple(group for group in self.parameters if not group.updated)

    def to_json(self) -> dict[str, Any]:
        """As it is saved, and read by `read_summary`."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


ROWS: dict[str, type] = {
    "parameters": ParameterGroup,
    "constants": ConstantGroup,
    "tensors": TensorRow,
    "casts": CastGroup,
    "missing": Missing,
}


def read_summary(path: Path) -> GraphSummary:
    """Read a summary that was saved.

    Raises:
        GraphError: if it is missing or no such file.
    """
    content = read_json(path, GraphError)
    if content.pop("format", None) != FORMAT:
        raise GraphError(f"{path}: is no summary of a graph. `mindmodel debug graph RECIPE --out FOLDER` makes one.")
    try:
        for name, row in ROWS.items():
            content[name] = tuple(row(**with_tuples(fields)) for fields in content[name] or ())
        content["layers"] = with_tuples(content["layers"])
        return GraphSummary(**content)
    except (AttributeError, KeyError, TypeError) as error:
        raise GraphError(f"{path}: the summary of a graph in it is damaged: {error}. Save it again.") from error


def with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def summarize(
    graph: Graph,
    sources: Mapping[str, Source],
    *,
    recipe: str,
    device: str,
    compile_s: Mapping[str, float],
    missing: Sequence[Missing],
) -> GraphSummary:
    """The summary of a graph.

    Args:
        sources: lines of Python by a node's scope.
        recipe, device: names, for the record.
        compile_s, missing: as of GraphSummary.
    """
    reader = _Reader(graph, sources)
    return GraphSummary(
        recipe=recipe,
        device=device,
        mindspore=version("mindspore"),
        kinds=dict(Counter(map(reader.kind, reader.counted)).most_common()),
        layers=reader.layers(),
        parameters=reader.parameter_groups(),
        constants=reader.constants(),
        tensors=reader.tensors(),
        casts=reader.casts(),
        compile_s=dict(compile_s),
        missing=tuple(missing),
    )


class _Reader(Nodes):
    """All nodes of a graph, with their types and lines."""

    def __init__(self, graph: Graph, sources: Mapping[str, Source]):
        super().__init__(graph, [node for function in graph.functions.values() for node in function.nodes])
        self.sources = sources
        self.counted = [node for node in self.all if self.kind(node) not in CONTROL]

    def where(self, node: Node) -> str:
        return str(self.sources.get(node.scope, ""))

    @cached_property
    def types(self) -> dict[str, ValueType]:
        """Of each value."""
        found: dict[str, ValueType] = {parameter.key: parameter.type for parameter in self.graph.parameters}
        for function in self.graph.functions.values():
            found.update((value.key, value.type) for value in function.inputs)
        found.update((node.output, node.type) for node in self.all)
        for key, value in self.graph.constants.items():
            if isinstance(value, np.ndarray):
                found[key] = TensorType(dtype=value.dtype, shape=value.shape)
        return found

    def origin(self, node: Node) -> str:
        """The parameter or the Cell whose value an operator of one operand passes on."""
        key = self.behind(node.inputs[0], PASSED_ON)
        return self.parameters.get(key) or place_of(self.makers.get(key, node).scope)

    def place(self, node: Node) -> str:
        """The Cell of a node; of a cast, of what is cast."""
        return self.origin(node) if self.kind(node) == "Cast" else place_of(node.scope)

    def layers(self) -> dict[str, tuple[int, int]]:
        counts: dict[str, list[int]] = {}
        for node in self.counted:
            counts.setdefault(part_of(self.place(node)), [0, 0])[node.scope.startswith(GRADIENTS)] += 1
        return {part: (counts[part][0], counts[part][1]) for part in sorted(counts, key=in_model_order)}

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        updates = (node for node in self.counted if UPDATES.fullmatch(self.kind(node)) or OPTIMIZER in node.scope)
        written = {leaf for node in updates for key in node.inputs for leaf in self.leaves(key)}
        groups = Counter((of_any_layer(p.name), str(p.type), p.key in written) for p in self.graph.parameters)
        sizes = {str(p.type): num_bytes_of(p.type) for p in self.graph.parameters}
        rows = [
            ParameterGroup(name=name, type=kind, count=count, num_bytes=count * sizes[kind], updated=updated)
            for (name, kind, updated), count in groups.items()
        ]
        return _largest_first(rows)

    def constants(self) -> tuple[ConstantGroup, ...]:
        groups: dict[tuple[str, str], list[str]] = {}
        for key, value in self.graph.constants.items():
            if isinstance(value, np.ndarray):
                digest = hashlib.sha256(value.tobytes()).hexdigest()
                groups.setdefault((str(self.types[key]), digest), []).append(key)
        return _largest_first([self._constant(kind, keys) for (kind, _), keys in groups.items()])

    def _constant(self, kind: str, keys: Sequence[str]) -> ConstantGroup:
        node = next((self.readers[key][0] for key in keys if key in self.readers), None)
        num_bytes = sum(num_bytes_of(self.types[key]) for key in keys)
        place, where = (place_of(node.scope), self.where(node)) if node else (STEP, "")
        return ConstantGroup(type=kind, copies=len(keys), num_bytes=num_bytes, place=place, where=where)

    def tensors(self) -> tuple[TensorRow, ...]:
        rows = [
            TensorRow(
                type=str(node.type),
                num_bytes=num_bytes_of(node.type),
                kind=self.kind(node),
                place=self.place(node),
                where=self.where(node),
            )
            for node in self.counted
            if isinstance(node.type, TensorType)
        ]
        return _largest_first(rows)[:NUM_TENSORS]

    def casts(self) -> tuple[CastGroup, ...]:
        groups: dict[tuple[str, str, str], list[Node]] = {}
        for node in self.counted:
            if self.kind(node) == "Cast":
                key = _dtype(self.types.get(node.inputs[0])), _dtype(node.type), of_any_layer(self.origin(node))
                groups.setdefault(key, []).append(node)
        rows = [
            CastGroup(before=before, after=after, origin=origin, count=len(nodes), where=self.where(nodes[0]))
            for (before, after, origin), nodes in groups.items()
        ]
        return tuple(sorted(rows, key=lambda row: -row.count))


def num_bytes_of(kind: ValueType) -> int:
    """Of all tensors of a type."""
    if isinstance(kind, tuple):
        return sum(map(num_bytes_of, kind))
    return math.prod(kind.shape) * kind.dtype.itemsize if kind else 0


def _dtype(kind: ValueType) -> str:
    return kind.dtype.name if isinstance(kind, TensorType) else "number"


def _largest_first(rows: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(sorted(rows, key=lambda row: -row.num_bytes))
