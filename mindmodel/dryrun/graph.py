"""A compiled graph as small records: what the interpreter executes, and what mindir.py reads from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Union

import numpy as np


@dataclass(frozen=True)
class Monad:
    """A value that only orders side effects."""


MONAD = Monad()


@dataclass(frozen=True, kw_only=True)
class Opaque:
    """A value of a kind that holds no numbers, such as a class."""

    kind: str


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """Dtype and shape of a tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


ValueType = Union[TensorType, tuple["ValueType", ...], None]  # None: neither a tensor nor a tuple of known length


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of the network: its own name, and its key among the graph's values."""

    name: str
    key: str
    type: TensorType


@dataclass(frozen=True, kw_only=True)
class Input:
    """An argument of a function, or an input of the graph."""

    name: str
    key: str
    type: ValueType


@dataclass(frozen=True, kw_only=True)
class Primitive:
    """An operator with its attributes. Several nodes may share one."""

    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation.

    Attributes:
        name: for messages.
        scope: the Cells it stands in, as MindSpore writes them; of gradients it begins with `Gradients/`.
        target: key of a primitive, of a function, or of a value that is a closure.
        inputs: keys of the operands.
        output: key of the result.
        type: declared type of the result.
    """

    name: str
    scope: str
    target: str
    inputs: tuple[str, ...]
    output: str
    type: ValueType


@dataclass(frozen=True, kw_only=True)
class Function:
    """Nodes in an order in which they can be executed. `outputs`: keys."""

    name: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A compiled graph. `functions`, `primitives` and `constants` by key; all functions share them and `parameters`.

    A constant is an array, a TensorType, a number, text, None, MONAD, Opaque, or a tuple of these.
    """

    main: Function
    parameters: tuple[Parameter, ...]
    functions: Mapping[str, Function]
    primitives: Mapping[str, Primitive]
    constants: Mapping[str, Any]
