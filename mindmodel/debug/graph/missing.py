"""Which operators of a graph this device cannot run: each is compiled alone, since a whole graph stops at the first.

MindSpore itself is asked, with the operator's own attributes and the dtypes of its operands. So an operator that the
compiler expands into others counts as one that runs, and one that has a kernel for other dtypes only does not.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.graph.api import _cell_graph_executor

from mindmodel.debug.graph.sources import Source
from mindmodel.debug.graph.summary import Missing
from mindmodel.dryrun.kernels import CONTROL
from mindmodel.dryrun.mindir import DTYPES, model_class
from mindmodel.dryrun.scopes import place_of
from mindmodel.errors import first_line

REFERENCE = "REF::"
"""Before the key of a primitive."""
BUNDLE = "MakeTuple:of a trial"
"""Key of a primitive that the trials add."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """An operator with dtypes of its operands, and the nodes that are this. `refusal` is MindSpore's, if any."""

    operator: str
    types: str
    nodes: Sequence[Any]
    refusal: Optional[str]

    def missing(self, why: str, sources: Mapping[str, Source]) -> Missing:
        """As one that the device cannot run, with its places and lines."""
        lines = (str(sources[node.domain]) for node in self.nodes if node.domain in sources)
        return Missing(
            operator=self.operator,
            types=self.types,
            count=len(self.nodes),
            reason=why,
            places=tuple(dict.fromkeys(place_of(node.domain) for node in self.nodes)),
            where=tuple(dict.fromkeys(lines)),
        )


def missing_operators(mindir: bytes, sources: Mapping[str, Source]) -> tuple[Missing, ...]:
    """All operators of a graph that the device of this process cannot run.

    Args:
        mindir: the graph as MindSpore exports it.
        sources: lines of Python by a node's scope.
    """
    return tuple(use.missing(use.refusal, sources) for use in tried_alone(mindir) if use.refusal)


def tried_alone(mindir: bytes) -> Iterator[Use]:
    """All operators of a graph that MindSpore exported, each when it has been compiled alone for this device."""
    trial = _Trial(model_class().FromString(mindir))
    for (operator, types), nodes in trial.groups().items():
        yield trial.of(operator, types, nodes)


class _Trial:
    """A MindIR model whose operators are compiled one at a time."""

    def __init__(self, model: Any):
        self.model = model
        bodies = [model.graph, *model.functions]
        self.primitives = {primitive.name: primitive for primitive in model.primitives}
        self.nodes = [node for body in bodies for node in body.node]
        self.makers = {node.output[0]: node for node in self.nodes}
        self.parameters = {tensor.name: tensor for body in bodies for tensor in body.parameter}
        self.inputs = {value.name: value for body in bodies for value in body.input}

    def operator(self, node: Any) -> str:
        """Its name; empty for constants and calls of functions."""
        primitive = self.primitives.get(node.op_type.removeprefix(REFERENCE))
        return primitive.op_type if primitive and node.op_type.startswith(REFERENCE) else ""

    def groups(self) -> dict[tuple[str, str], list[Any]]:
        """The nodes by what decides on their kernel: operator and dtypes of the operands."""
        found: dict[tuple[str, str], list[Any]] = {}
        for node in self.nodes:
            operator = self.operator(node)
            if operator and operator not in CONTROL:
                found.setdefault((operator, ", ".join(filter(None, map(self._dtypes, node.input)))), []).append(node)
        return found

    def of(self, operator: str, types: str, nodes: Sequence[Any]) -> Use:
        """Compile the first of some nodes alike."""
        model = self._alone(nodes[0])
        inputs = [_zeros(tensor) for value in model.graph.input for tensor in value.tensor]
        with tempfile.TemporaryDirectory(prefix="mindmodel-operator-") as folder:
            path = Path(folder, "operator.mindir")
            path.write_bytes(model.SerializeToString())
            refusal = _refusal(path, inputs)
        return Use(operator=operator, types=types, nodes=nodes, refusal=refusal)

    def _dtypes(self, key: str) -> str:
        """Of the tensors of an operand."""
        if key in self.parameters:
            return _dtype_name(self.parameters[key])
        if key in self.inputs:
            return " ".join(map(_dtype_name, self.inputs[key].tensor))
        node = self.makers[key]
        if node.op_type == "Constant":
            return " ".join(_dtype_name(tensor) for part in node.attribute for tensor in part.tensors)
        if self.operator(node) == "MakeTuple":
            return f"({' '.join(dict.fromkeys(map(self._dtypes, node.input)))})"
        parts = [tensor for part in _tuple_parts(node) for tensor in part.tensors]
        return " ".join(dict.fromkeys(map(_dtype_name, parts or _result(node))))

    def _alone(self, node: Any) -> Any:
        """A model of this node; tensors that others compute are inputs."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        for name in ("graph", "functions", "primitives"):
            model.ClearField(name)
        model.graph.name = "operator"
        for key in node.input:
            self._supply(key, model)
        self._copy(node, model)
        output = model.graph.output.add(name=node.output[0])
        output.tensor.extend(_result(node))
        return model

    def _copy(self, node: Any, model: Any) -> None:
        model.graph.node.add().CopyFrom(node)
        primitive = self.primitives[node.op_type.removeprefix(REFERENCE)]
        if primitive.name not in {known.name for known in model.primitives}:
            model.primitives.add().CopyFrom(primitive)

    def _supply(self, key: str, model: Any) -> None:
        """Put an operand into the model."""
        graph = model.graph
        if key in {value.name for part in (graph.input, graph.parameter) for value in part}:
            return
        if key in {node.output[0] for node in graph.node}:
            return
        if key in self.parameters:
            graph.parameter.add().CopyFrom(self.parameters[key])
        elif key in self.inputs:
            graph.input.add().CopyFrom(self.inputs[key])
        elif self.makers[key].op_type == "Constant":
            graph.node.add().CopyFrom(self.makers[key])
        else:
            self._supply_result(key, self.makers[key], model)

    def _supply_result(self, key: str, node: Any, model: Any) -> None:
        operator = self.operator(node)
        if operator == "MakeTuple":
            for part in node.input:
                self._supply(part, model)
            self._copy(node, model)
        elif operator == "UpdateState":
            monad = model.graph.node.add(op_type="Constant", name=key, output=[key]).attribute.add(name="value")
            monad.type = monad.AttributeType.Value("UMONAD")
        elif parts := _tuple_parts(node):
            self._supply_tuple(node, parts, model)
        else:
            model.graph.input.add(name=key).tensor.extend(_result(node))

    def _supply_tuple(self, node: Any, parts: Sequence[Any], model: Any) -> None:
        """The result of an operator that gives several tensors, made of as many inputs."""
        bundle = model.graph.node.add(op_type=f"{REFERENCE}{BUNDLE}", name=node.name, output=node.output)
        bundle.attribute.extend(attribute for attribute in node.attribute if attribute.name == "shape")
        for number, part in enumerate(parts):
            model.graph.input.add(name=f"{node.output[0]}.{number}").tensor.extend(part.tensors)
            bundle.input.append(f"{node.output[0]}.{number}")
        if BUNDLE not in {known.name for known in model.primitives}:
            model.primitives.add(name=BUNDLE, op_type="MakeTuple")


def _result(node: Any) -> list[Any]:
    """Types of the tensors that a node gives."""
    return [tensor for part in node.attribute if part.name == "shape" for tensor in part.tensors]


def _tuple_parts(node: Any) -> list[Any]:
    """Types in the tuple that a node gives, if it gives one."""
    return [part for attribute in node.attribute if attribute.name == "shape" for part in attribute.values]


def _dtype_name(tensor: Any) -> str:
    name = type(tensor).DataType.Name(tensor.data_type)
    return DTYPES[name].name if name in DTYPES else name.lower()


def _zeros(tensor: Any) -> Tensor:
    """A tensor of a type, without content of its own."""
    dtype = DTYPES[type(tensor).DataType.Name(tensor.data_type)]
    if dtype.name == "bfloat16":
        return Tensor(np.zeros(tuple(tensor.dims), np.float32), ms.bfloat16)
    return Tensor(np.zeros(tuple(tensor.dims), dtype))


def _refusal(path: Path, inputs: Sequence[Tensor]) -> Optional[str]:
    """Why MindSpore finds no kernel for the graph in a file; None if it does."""
    try:
        cell = nn.GraphCell(ms.load(str(path)))
    except (RuntimeError, TypeError, ValueError) as error:
        return f"could not be tried alone: {first_line(error)}"
    try:
        _cell_graph_executor.compile(cell, *inputs, phase="train", do_convert=False)
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error)
    return None
