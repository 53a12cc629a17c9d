"""The kernels that the CPU runs in a step, as MindSpore's last readable graph tells them: after fusion, with dtypes.

Source: graph_build_*.ir, which MindSpore 2.9 writes with MS_DEV_SAVE_GRAPHS; a node takes a line for its operands, a
line for the types of its kernel, and one for its scope.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Container, Iterable, Iterator, Mapping, Optional, Sequence

import ml_dtypes
import numpy as np

from mindmodel.debug.graph.sources import SCOPE
from mindmodel.dryrun.graph import TensorType
from mindmodel.dryrun.kernels import CONTROL
from mindmodel.errors import GraphError

FUNCTION = re.compile(r"subgraph @(\S+?)\(")
NODE = re.compile(r"  (%\d+)\([^)]*\) = (call @\S+?|\w+)\((.*)")
RETURN = re.compile(r"  Return\((%\S+)\)")
KERNEL_TYPES = re.compile(r"<(\w+)xDefaultFormat\[const vector\]\{([\d, ]*)\}>")
LIBRARY_FUNCTION = re.compile(r'func_name: "[^"]*:(\w+)"')
PARAMETER, VALUE = re.compile(r"%para\d+_([\w.]+)"), re.compile(r"%(?:\d+|para\d+_[\w.]+)")
BOOLEAN = re.compile(r"Bool\((\d)\)")
DTYPES = {"Bool": np.dtype(bool), "BFloat16": np.dtype(ml_dtypes.bfloat16)}
FUSED = "fused"
"""Before the operators that MindSpore made one kernel of."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel, or an operator inside of one.

    Attributes:
        scope: with its number; the profiler names the kernel so.
        operator: such as MatMul, of our own C++ kernels Custom:linear_forward; of a fused kernel what it was made of.
        inputs: keys of the operands that are no constants.
        operands, results: types of the tensors.
        flags: operands that are true or false; of a product whether its factors are transposed.
        parts: the operators of a fused kernel.
    """

    key: str
    scope: str
    operator: str
    inputs: tuple[str, ...]
    operands: tuple[TensorType, ...]
    results: tuple[TensorType, ...]
    flags: tuple[bool, ...]
    parts: tuple["Kernel", ...] = ()


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor that a kernel made: which of its results."""

    kernel: str
    index: int


@dataclass(frozen=True, kw_only=True)
class KernelGraph:
    """A step's kernels by key, in an order in which they can run, and what only passes values on.

    Attributes:
        bundles: operands of the nodes that are no kernels by key, and the number of the result that is taken, if any.
        output: key of what the step returns.
    """

    kernels: Mapping[str, Kernel]
    bundles: Mapping[str, tuple[tuple[str, ...], Optional[int]]]
    output: str

    @cached_property
    def by_scope(self) -> dict[str, Kernel]:
        """As the profiler names them."""
        return {kernel.scope: kernel for kernel in self.kernels.values()}

    @cached_property
    def sources(self) -> dict[str, tuple[Value, ...]]:
        """The tensors that each kernel reads, but parameters and constants."""
        return {key: tuple(self.values(kernel.inputs)) for key, kernel in self.kernels.items()}

    @cached_property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """Names of the parameters that each kernel reads or writes."""
        return {key: tuple(self._parameters(kernel.inputs)) for key, kernel in self.kernels.items()}

    @cached_property
    def readers(self) -> dict[Value, list[str]]:
        """The kernels that read each tensor."""
        found: dict[Value, list[str]] = {}
        for key, values in self.sources.items():
            for value in dict.fromkeys(values):
                found.setdefault(value, []).append(key)
        return found

    @cached_property
    def outputs(self) -> frozenset[Value]:
        """The tensors that the step returns."""
        return frozenset(self.values([self.output]))

    def of_those_that_ran(self, scopes: Container[str]) -> "KernelGraph":
        """The same with views, which the CPU skips, as nodes that pass a value on."""
        skipped = {key: kernel for key, kernel in self.kernels.items() if kernel.scope not in scopes}
        return KernelGraph(
            kernels={key: kernel for key, kernel in self.kernels.items() if key not in skipped},
            bundles={**self.bundles, **{key: (kernel.inputs[:1], None) for key, kernel in skipped.items()}},
            output=self.output,
        )

    def values(self, keys: Iterable[str]) -> Iterator[Value]:
        """The tensors behind some keys."""
        for key in keys:
            yield from self._behind(key, None)

    def _behind(self, key: str, index: Optional[int]) -> Iterator[Value]:
        if key in self.kernels:
            results = range(len(self.kernels[key].results)) if index is None else [index]
            yield from (Value(kernel=key, index=number) for number in results)
        elif key in self.bundles:
            operands, taken = self.bundles[key]
            if taken is None and index is not None and len(operands) > 1:
                operands, index = operands[index:index + 1], None
            for operand in operands:
                yield from self._behind(operand, index if taken is None else taken)

    def _parameters(self, keys: Iterable[str]) -> Iterator[str]:
        for key in keys:
            if found := PARAMETER.fullmatch(key):
                yield found[1]
            elif key in self.bundles:
                yield from self._parameters(self.bundles[key][0])


def read_kernels(text: str) -> KernelGraph:
    """The graph in MindSpore's text.

    Raises:
        GraphError: if it has no nodes that are understood.
    """
    functions = _functions(text)
    name, nodes = max(functions.items(), key=lambda item: item[0].startswith("kernel_graph"), default=("", []))
    output = RETURN.search(text[text.find(f"subgraph @{name}("):])
    kernels: dict[str, Kernel] = {}
    bundles: dict[str, tuple[tuple[str, ...], Optional[int]]] = {}
    for node in nodes:
        if node.name in CONTROL:
            bundles[node.key] = node.passed_on()
        else:
            kernels[node.key] = node.kernel(functions)
    if not kernels or output is None:
        raise GraphError(f"MindSpore's graph of kernels is not understood: {text[:60]!r}. It is read as 2.9 writes it.")
    return KernelGraph(kernels=kernels, bundles=bundles, output=output[1])


@dataclass(frozen=True, kw_only=True)
class _Node:
    """Lines of a node."""

    key: str
    name: str
    rest: str
    types: str
    scope: str

    @property
    def operands(self) -> list[str]:
        return list(_operands(self.rest))

    def passed_on(self) -> tuple[tuple[str, ...], Optional[int]]:
        """Keys of what this node hands on, and which of it."""
        operands = self.operands
        index = re.search(r"\d+\)$", operands[1]) if self.name in ("TupleGetItem", "RealTupleGetItem") else None
        keep = operands if self.name in ("MakeTuple", "RealMakeTuple") else operands[:1]
        return tuple(filter(VALUE.fullmatch, keep)), int(index[0][:-1]) if index else None

    def kernel(self, functions: Mapping[str, Sequence["_Node"]]) -> Kernel:
        reads, _, makes = self.types.partition(" -> ")
        called = functions.get(self.name.removeprefix("call @"), ())
        parts = tuple(node.kernel(functions) for node in called if node.name not in CONTROL)
        operands = self.operands
        return Kernel(
            key=self.key,
            scope=self.scope,
            operator=f"{FUSED} {' '.join(part.operator for part in parts)}" if called else self._operator(),
            inputs=tuple(filter(VALUE.fullmatch, operands)),
            operands=tuple(map(_type, KERNEL_TYPES.findall(reads))),
            results=tuple(map(_type, KERNEL_TYPES.findall(makes))),
            flags=tuple(found[1] == "1" for found in map(BOOLEAN.fullmatch, operands) if found),
            parts=parts,
        )

    def _operator(self) -> str:
        function = LIBRARY_FUNCTION.search(self.rest) if self.name == "Custom" else None
        return f"Custom:{function[1]}" if function else self.name.removeprefix("PrimFunc_")


def _functions(text: str) -> dict[str, list[_Node]]:
    """The nodes of each function."""
    found: dict[str, list[_Node]] = {}
    nodes: list[_Node] = []
    key = name = rest = types = ""
    for line in text.splitlines():
        if function := FUNCTION.match(line):
            nodes = found.setdefault(function[1], [])
        elif node := NODE.match(line):
            key, name, rest, types = node[1], node[2], node[3], ""
        elif line.startswith("      : (") and "DefaultFormat" in line:
            types = line
        elif key and (scope := SCOPE.match(line)):
            nodes.append(_Node(key=key, name=name, rest=rest, types=types, scope=scope[1]))
            key = ""
    return found


def _operands(text: str) -> Iterator[str]:
    """The operands at the beginning of a text, up to the bracket that closes them."""
    depth, begin = 0, 0
    for end, sign in enumerate(text):
        if sign in ",)" and depth == 0:
            if operand := text[begin:end].strip():
                yield operand
            begin = end + 1
            if sign == ")":
                return
        depth += (sign in "([{") - (sign in ")]}")


def _type(found: tuple[str, str]) -> TensorType:
    name, shape = found
    dtype = DTYPES.get(name) or np.dtype(name.lower())
    return TensorType(dtype=dtype, shape=tuple(map(int, re.findall(r"\d+", shape))))
