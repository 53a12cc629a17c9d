"""One rank's graph, executed node by node until it needs other ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Container, Generator, Mapping, Sequence

import numpy as np

from mindmodel.dryrun import kernels, kernels_attention, kernels_nn, kernels_shape
from mindmodel.dryrun.collectives import COLLECTIVES, CollectiveCall
from mindmodel.dryrun.graph import MONAD, Function, Graph, Node, Primitive, TensorType, ValueType
from mindmodel.dryrun.kernels import CONTROL, Closure, Context
from mindmodel.errors import LayoutError

KERNELS = {**kernels.KERNELS, **kernels_shape.KERNELS, **kernels_nn.KERNELS, **kernels_attention.KERNELS}
MEETINGS = {*COLLECTIVES, "Send", "Receive"}
FLOATS = {"float16", "bfloat16", "float32", "float64"}


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A rank at a node for which it needs other ranks; `operands` without monads."""

    rank: int
    node: Node
    primitive: Primitive
    operands: tuple[Any, ...]

    def __str__(self) -> str:
        return _where(self.rank, self.primitive.name, self.node)

    @property
    def declared(self) -> tuple[TensorType, ...]:
        """Types of the result's tensors: their dtypes are those on the wire."""
        declared = self.node.type if isinstance(self.node.type, tuple) else (self.node.type,)
        return tuple(part for part in declared if isinstance(part, TensorType))

    def record(self, group: tuple[int, ...], tensors: Sequence[np.ndarray]) -> list[CollectiveCall]:
        """For the log, one for each of the tensors."""
        return [
            CollectiveCall(
                kind=self.primitive.name,
                rank=self.rank,
                group=group,
                shape=tensor.shape,
                dtype=declared.dtype.name,
                num_bytes=math.prod(tensor.shape) * declared.dtype.itemsize,
                node=self.node.name,
                scope=self.node.scope,
            )
            for tensor, declared in zip(tensors, self.declared, strict=True)
        ]


class Rank:
    """A graph with the parameters that it reads and updates.

    Args:
        number: global rank, for messages.
        parameters: by name; copied.
        dtype: that every float takes.
        keep: keys of values that are kept.

    Attributes:
        parameters: by name, as they are now.
        kept: by key, as they were when they were last computed.

    Raises:
        LayoutError: if a parameter is missing or has another shape or dtype.
    """

    def __init__(
        self,
        number: int,
        graph: Graph,
        parameters: Mapping[str, np.ndarray],
        dtype: np.dtype,
        keep: Container[str] = (),
    ):
        self.number, self._graph, self._dtype, self._keep = number, graph, dtype, keep
        self.kept: dict[str, Any] = {}
        self.parameters: dict[str, np.ndarray] = {}
        self._shared: dict[str, Any] = {name: Closure(function=name) for name in graph.functions}
        self._shared.update((key, self._promoted(value)) for key, value in graph.constants.items())
        for parameter in graph.parameters:
            if parameter.name not in parameters:
                raise LayoutError(f"rank {number}: parameter {parameter.name!r} is missing.")
            value = self._fitting(f"parameter {parameter.name!r}", parameters[parameter.name], parameter.type).copy()
            self.parameters[parameter.name] = self._shared[parameter.key] = value

    def run(self, inputs: Sequence[np.ndarray]) -> Generator[Waiting, Any, Any]:
        """Execute the graph once; yields where other ranks are needed, and goes on with what it is sent.

        Returns: what the graph returns.
        Raises:
            LayoutError: if the inputs do not fit, a primitive is not known or fails, or a result is not what the graph
                declares.
        """
        expected = self._graph.main.inputs
        if len(inputs) != len(expected):
            raise LayoutError(f"rank {self.number}: {len(inputs)} inputs are given, and the graph has {len(expected)}.")
        pairs = zip(expected, inputs)
        fitting = [self._fitting(f"input {wanted.name!r}", given, wanted.type) for wanted, given in pairs]
        return _copied((yield from self._call(self._graph.main, fitting)))

    def _fitting(self, what: str, value: Any, declared: ValueType) -> np.ndarray:
        array, expected = self._promoted(np.asarray(value)), self._promoted_type(declared)
        if not _is_of(array, expected):
            raise LayoutError(
                f"rank {self.number}: {what} is {_described(value)}, and the graph declares {_described(declared)}."
            )
        return array

    def _call(self, function: Function, arguments: Sequence[Any]) -> Generator[Waiting, Any, Any]:
        values = dict(self._shared)
        values.update(zip((wanted.key for wanted in function.inputs), arguments, strict=True))
        for node in function.nodes:
            operands = tuple(values[key] for key in node.inputs)
            if node.target in self._graph.primitives:
                primitive = self._graph.primitives[node.target]
                values[node.output] = yield from self._execute(node, primitive, operands)
            else:
                closure = values[node.target]
                called = self._graph.functions[closure.function]
                values[node.output] = yield from self._call(called, (*closure.bound, *operands))
            if node.output in self._keep:
                self.kept[node.output] = _copied(values[node.output])
        outputs = tuple(values[key] for key in function.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _execute(self, node: Node, primitive: Primitive, operands: tuple[Any, ...]) -> Generator[Waiting, Any, Any]:
        where = _where(self.number, primitive.name, node)
        if primitive.name in MEETINGS:
            given = tuple(operand for operand in operands if operand is not MONAD)
            result = yield Waiting(rank=self.number, node=node, primitive=primitive, operands=given)
        else:
            result = self._computed(where, node, primitive, operands)
        expected = self._promoted_type(node.type)
        if not _is_of(result, expected):
            raise LayoutError(
                f"{where}: gives {_described(result)} from {_described(operands)}, and the graph declares "
                f"{_described(expected)}, floats being {self._dtype}."
            )
        return result

    def _computed(self, where: str, node: Node, primitive: Primitive, operands: tuple[Any, ...]) -> Any:
        if primitive.name not in CONTROL and primitive.name not in KERNELS:
            raise LayoutError(f"{where}: {primitive.name} has no kernel; add one to mindmodel/dryrun/kernels.py.")
        try:
            if primitive.name in CONTROL:
                return CONTROL[primitive.name](*operands)
            context = Context(attributes=primitive.attributes, result=self._promoted_type(node.type))
            given = (operand for operand in operands if operand is not MONAD)
            return _as_arrays(KERNELS[primitive.name](context, *given))
        except Exception as error:
            raise LayoutError(f"{where}: cannot be computed from {_described(operands)}: {error!r}") from error

    def _promoted(self, value: Any) -> Any:
        """With every float array in the dtype of this execution."""
        if isinstance(value, tuple):
            return tuple(map(self._promoted, value))
        if isinstance(value, np.ndarray) and value.dtype.name in FLOATS:
            return value.astype(self._dtype)
        return value

    def _promoted_type(self, declared: ValueType) -> ValueType:
        if isinstance(declared, tuple):
            return tuple(map(self._promoted_type, declared))
        if declared is not None and declared.dtype.name in FLOATS:
            return TensorType(dtype=self._dtype, shape=declared.shape)
        return declared


def _where(rank: int, primitive: str, node: Node) -> str:
    return f"rank {rank}, {primitive} {node.name} in {node.scope or 'the graph'}"


def _is_of(value: Any, declared: ValueType) -> bool:
    """Whether tensors have the declared dtype and shape, and tuples the declared length."""
    if isinstance(declared, tuple):
        return isinstance(value, tuple) and len(value) == len(declared) and all(map(_is_of, value, declared))
    if declared is None:
        return True
    return isinstance(value, np.ndarray) and (value.dtype, value.shape) == (declared.dtype, declared.shape)


def _as_arrays(value: Any) -> Any:
    """NumPy gives numbers where a tensor has no dims."""
    if isinstance(value, tuple):
        return tuple(map(_as_arrays, value))
    return np.asarray(value) if isinstance(value, np.generic) else value


def _copied(value: Any) -> Any:
    """What later runs do not change."""
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return value.copy() if isinstance(value, np.ndarray) else value


def _described(value: Any) -> str:
    """For messages: dtypes and shapes of what are tensors."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, np.ndarray):
        return str(TensorType(dtype=value.dtype, shape=value.shape))
    return str(value)
