"""What MindSpore's operators for arithmetic, reductions and in-place updates compute, in NumPy.

A kernel takes a Context, then the operands of its primitive in MindSpore's order without monads; it must not change
them, except a parameter that the operator itself updates. `CONTROL` holds what moves values without computing: those
functions take the operands alone.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Optional

import numpy as np

from mindmodel.dryrun.graph import MONAD, TensorType

Array = np.ndarray
Kernel = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a kernel may ask of its node: the primitive's attributes, and the declared type of the result.

    Each kernel knows whether that is a TensorType or a tuple of them.
    """

    attributes: Mapping[str, Any]
    result: Any


@dataclass(frozen=True, kw_only=True)
class Closure:
    """A function as a value, some of its arguments already given."""

    function: str
    bound: tuple[Any, ...] = ()


def plain(function: Callable[..., Any]) -> Kernel:
    """A kernel that needs no context."""
    return lambda context, *operands: function(*operands)


def _of_two(function: Callable[[Array, Array], Any]) -> Kernel:
    """Of a tensor and a tensor or number; the number takes the tensor's dtype."""

    def kernel(context: Context, first: Any, second: Any) -> Any:
        if not isinstance(first, Array):
            first = np.asarray(first, second.dtype)
        if not isinstance(second, Array):
            second = np.asarray(second, first.dtype)
        return function(first, second)

    return kernel


def undefined(declared: TensorType) -> Array:
    """A result that the operator leaves undefined: whatever used it would become NaN."""
    return np.full(declared.shape, np.nan, declared.dtype)


def divide_no_nan(x: Array, y: Array) -> Array:
    """x / y, and zero where y is zero."""
    return np.divide(x, y, out=np.zeros(np.broadcast_shapes(x.shape, y.shape), x.dtype), where=y != 0)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def int_tuple(values: Any) -> tuple[int, ...]:
    """Sizes, axes or a single one, given as a number, a tuple or a tensor."""
    return tuple(int(value) for value in np.ravel(values))


def axes(axis: Any) -> Optional[tuple[int, ...]]:
    """For NumPy: None, an axis that is not given, and an empty tuple all mean every axis."""
    return int_tuple(axis) or None if axis is not None else None


def given(context: Context, operand: Any, attribute: str, default: Any) -> Any:
    """An argument that is an operand of most primitives, and an attribute of those the compiler inserts."""
    return context.attributes.get(attribute, default) if operand is None else operand


def matmul(context: Context, a: Array, b: Array, transpose_a: Any = None, transpose_b: Any = None) -> Array:
    """Product of the last two dims."""
    if given(context, transpose_a, "transpose_a", False):
        a = a.swapaxes(-1, -2)
    if given(context, transpose_b, "transpose_b", False):
        b = b.swapaxes(-1, -2)
    return a @ b


def _reducing(function: Callable[..., Any]) -> Kernel:
    """Kernel of a reduction over some axes, in the dtype that the graph declares."""

    def kernel(context: Context, x: Array, axis: Any = None, keep_dims: bool = False, *_: Any) -> Array:
        return np.asarray(function(x, axis=axes(axis), keepdims=keep_dims), context.result.dtype)

    return kernel


def argmax_with_value(context: Context, x: Array, axis: Any = None, keep_dims: Any = None) -> tuple[Array, Array]:
    """Index of the first maximum along an axis, and the maximum."""
    axis = given(context, axis, "axis", 0)
    keep_dims = given(context, keep_dims, "keep_dims", False)
    index = np.argmax(x, axis, keepdims=keep_dims)
    return np.asarray(index, context.result[0].dtype), np.asarray(np.max(x, axis, keepdims=keep_dims))


def cast(context: Context, x: Any, *_: Any) -> Array:
    """The value in the dtype that the graph declares; the operand that names the dtype is a number of MindSpore's."""
    return np.asarray(x).astype(context.result.dtype)


def one_hot(context: Context, indices: Array, depth: Any, on: Array, off: Array, axis: int = -1) -> Array:
    """`on` where a position along a new axis is the index, else `off`."""
    positions = np.arange(int(depth))
    return np.moveaxis(np.where(indices[..., np.newaxis] == positions, on, off), -1, axis)


def _filled(context: Context, value: Any) -> Array:
    """A tensor of one value; the operands of its primitive say what the declared type says."""
    return np.full(context.result.shape, value, context.result.dtype)


def nan_to_num(context: Context, x: Array, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Array:
    """x with what is not finite replaced: NaN by 0, infinities by the largest numbers if nothing else is given."""
    return np.nan_to_num(x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf)


def _updating(function: Callable[[Array, Array], Array]) -> Kernel:
    """Kernel that puts function(parameter, value) into the parameter and returns it."""

    def kernel(context: Context, parameter: Array, value: Array) -> Array:
        parameter[...] = function(parameter, np.reshape(value, parameter.shape))
        return parameter

    return kernel


def partial(closure: Closure, *arguments: Any) -> Closure:
    """A closure with more arguments given."""
    return Closure(function=closure.function, bound=(*closure.bound, *arguments))


CONTROL: dict[str, Callable[..., Any]] = {
    "Depend": lambda value, *_: value,
    "Identity": lambda value: value,
    "Load": lambda value, *_: value.copy(),
    "MakeTuple": lambda *values: values,
    "Partial": partial,
    "RealMakeTuple": lambda *values: values,
    "RealTupleGetItem": lambda values, index: values[int(index)],
    "StopGradient": lambda value: value,
    "Switch": lambda condition, if_true, if_false: if_true if condition else if_false,
    "TensorMove": lambda value, *_: value.copy(),
    "TupleGetItem": lambda values, index: values[int(index)],
    "UpdateState": lambda *_: MONAD,
}

_OF_ONE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Cos": np.cos,
    "Exp": np.exp,
    "Floor": np.floor,
    "IsFinite": np.isfinite,
    "Log": np.log,
    "LogicalNot": np.logical_not,
    "Neg": np.negative,
    "OnesLike": np.ones_like,
    "ReLU": lambda x: np.maximum(x, 0),
    "Reciprocal": lambda x: 1 / x,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Sigmoid": sigmoid,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Square": np.square,
    "Tanh": np.tanh,
    "ZerosLike": np.zeros_like,
}

_OF_TWO: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Adds": np.add,
    "BitwiseAnd": np.bitwise_and,
    "Div": np.true_divide,
    "DivNoNan": divide_no_nan,
    "Dot": np.dot,
    "Divs": np.true_divide,
    "Equal": np.equal,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "LogicalAnd": np.logical_and,
    "LogicalOr": np.logical_or,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "Muls": np.multiply,
    "NotEqual": np.not_equal,
    "Pow": np.power,
    "PowTensorScalar": np.power,
    "RealDiv": np.true_divide,
    "Sub": np.subtract,
}

_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "ScalarAdd": operator.add,
    "ScalarDiv": operator.truediv,
    "ScalarEq": operator.eq,
    "ScalarFloorDiv": operator.floordiv,
    "ScalarGe": operator.ge,
    "ScalarGt": operator.gt,
    "ScalarLe": operator.le,
    "ScalarLt": operator.lt,
    "ScalarMod": operator.mod,
    "ScalarMul": operator.mul,
    "ScalarSub": operator.sub,
    "ScalarUsub": operator.neg,
    "TensorToScalar": lambda x: x.item(),
}

KERNELS: dict[str, Kernel] = {
    **{name: plain(function) for name, function in {**_OF_ONE, **_OF_NUMBERS}.items()},
    **{name: _of_two(function) for name, function in _OF_TWO.items()},
    "AddN": lambda context, values: functools.reduce(np.add, values),
    "ArgMaxWithValue": argmax_with_value,
    "Assign": _updating(lambda parameter, value: value),
    "AssignAdd": _updating(np.add),
    "AssignSub": _updating(np.subtract),
    "BatchMatMul": matmul,
    "BatchMatMulExt": matmul,
    "Cast": cast,
    "FillV2": lambda context, shape, value: _filled(context, value),
    "MatMul": matmul,
    "MeanExt": _reducing(np.mean),
    "NanToNum": nan_to_num,
    "OneHot": one_hot,
    "Ones": lambda context, *_: _filled(context, 1),
    "ReduceMax": _reducing(np.max),
    "ReduceMean": _reducing(np.mean),
    "ReduceSum": _reducing(np.sum),
    "ScalarToTensor": cast,
    "Select": plain(np.where),
    "SumExt": _reducing(np.sum),
    "Zeros": lambda context, *_: _filled(context, 0),
}
