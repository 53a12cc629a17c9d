"""Every kernel against a formula of its own; those of gradients against central differences of the forward kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import pytest

from mindmodel.dryrun.graph import MONAD, TensorType
from mindmodel.dryrun.kernels import CONTROL, Closure, Context
from mindmodel.dryrun.rank import KERNELS

RANDOM = np.random.RandomState(1)
X, Y = RANDOM.standard_normal((2, 3, 4))
POSITIVE = np.abs(X) + 0.5
INTS, OTHER_INTS = np.array([[7, -7, 5], [0, 1, -2]], np.int32), np.array([[2, 2, -3], [1, 1, 3]], np.int32)
BOOLS, OTHER_BOOLS = X > 0, Y > 0
CUBE = RANDOM.standard_normal((2, 3, 4))
ROWS = np.array([2, 0, 2, 1], np.int32)
NOT_FINITE = np.array([1.5, np.nan, np.inf, -np.inf])


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What a kernel must give; `expected` says its dtype too."""

    name: str
    operands: tuple[Any, ...]
    expected: Any
    attributes: dict[str, Any] = field(default_factory=dict)


def forward(name: str, *operands: Any, expected: Any, **attributes: Any) -> Forward:
    return Forward(name=name, operands=operands, expected=expected, attributes=attributes)


def declared(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(declared, value))
    return TensorType(dtype=value.dtype, shape=value.shape) if isinstance(value, np.ndarray) else None


def evaluate(name: str, *operands: Any, result: Any = None, **attributes: Any) -> Any:
    return KERNELS[name](Context(attributes=attributes, result=result), *operands)


def floats(*shape: int) -> TensorType:
    return TensorType(dtype=np.dtype(np.float64), shape=shape)


def elements(function: Callable[..., Any], *arrays: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
    """One by one, with Python's own arithmetic."""
    pairs = [function(*values) for values in zip(*(array.ravel().tolist() for array in arrays))]
    return np.array(pairs, dtype).reshape(arrays[0].shape)


OF_ONE = [
    forward("Abs", X, expected=elements(abs, X)),
    forward("Cos", X, expected=elements(math.cos, X)),
    forward("Exp", X, expected=elements(math.exp, X)),
    forward("Floor", X, expected=elements(math.floor, X)),
    forward("IsFinite", NOT_FINITE, expected=np.array([True, False, False, False])),
    forward("Log", POSITIVE, expected=elements(math.log, POSITIVE)),
    forward("LogicalNot", BOOLS, expected=elements(lambda x: not x, BOOLS, dtype=bool)),
    forward("NanToNum", NOT_FINITE, 0.0, 8.0, -9.0, expected=np.array([1.5, 0.0, 8.0, -9.0])),
    forward("NanToNum", NOT_FINITE[:2], None, None, None, expected=np.array([1.5, 0.0])),
    forward("Neg", X, expected=elements(lambda x: -x, X)),
    forward("OnesLike", X, expected=np.array([[1.0] * 4] * 3)),
    forward("ReLU", X, expected=elements(lambda x: x if x > 0 else 0.0, X)),
    forward("Reciprocal", X, expected=elements(lambda x: x**-1, X)),
    forward("Rsqrt", POSITIVE, expected=elements(lambda x: x**-0.5, POSITIVE)),
    forward("SiLU", X, expected=elements(lambda x: x * (1 + math.tanh(x / 2)) / 2, X)),
    forward("Sigmoid", X, expected=elements(lambda x: (1 + math.tanh(x / 2)) / 2, X)),
    forward("Sign", np.array([-2.0, 0.0, 3.0]), expected=np.array([-1.0, 0.0, 1.0])),
    forward("Sin", X, expected=elements(math.sin, X)),
    forward("Sqrt", POSITIVE, expected=elements(math.sqrt, POSITIVE)),
    forward("Square", X, expected=elements(lambda x: x**2, X)),
    forward("Tanh", X, expected=elements(math.tanh, X)),
    forward("ZerosLike", X, expected=np.array([[0.0] * 4] * 3)),
]

OF_TWO = [
    forward("Add", X, Y, expected=elements(lambda x, y: x + y, X, Y)),
    forward("Add", INTS, OTHER_INTS, expected=elements(lambda x, y: x + y, INTS, OTHER_INTS, dtype=np.int32)),
    forward("Add", np.array(3, np.int32), 2, expected=np.array(5, np.int32)),
    forward("Adds", X, 2.5, expected=elements(lambda x: x + 2.5, X)),
    forward("BitwiseAnd", INTS, OTHER_INTS, expected=elements(lambda x, y: x & y, INTS, OTHER_INTS, dtype=np.int32)),
    forward("Div", X, Y, expected=elements(lambda x, y: x / y, X, Y)),
    forward("DivNoNan", np.array([1.0, 3.0]), np.array([0.0, 2.0]), expected=np.array([0.0, 1.5])),
    forward("Dot", np.array([1.0, 2.0]), np.array([3.0, 4.0]), expected=np.array(11.0)),
    forward("Divs", X, 2, expected=elements(lambda x: x / 2, X)),
    forward("Equal", INTS, OTHER_INTS, expected=elements(lambda x, y: x == y, INTS, OTHER_INTS, dtype=bool)),
    forward("FloorDiv", INTS, OTHER_INTS, expected=elements(lambda x, y: x // y, INTS, OTHER_INTS, dtype=np.int32)),
    forward("FloorMod", INTS, OTHER_INTS, expected=elements(lambda x, y: x % y, INTS, OTHER_INTS, dtype=np.int32)),
    forward("Greater", X, Y, expected=elements(lambda x, y: x > y, X, Y, dtype=bool)),
    forward("GreaterEqual", INTS, 0, expected=elements(lambda x: x >= 0, INTS, dtype=bool)),
    forward("Less", X, Y, expected=elements(lambda x, y: x < y, X, Y, dtype=bool)),
    forward("LessEqual", INTS, OTHER_INTS, expected=elements(lambda x, y: x <= y, INTS, OTHER_INTS, dtype=bool)),
    forward("LogicalAnd", BOOLS, OTHER_BOOLS, expected=elements(lambda x, y: x and y, BOOLS, OTHER_BOOLS, dtype=bool)),
    forward("LogicalOr", BOOLS, OTHER_BOOLS, expected=elements(lambda x, y: x or y, BOOLS, OTHER_BOOLS, dtype=bool)),
    forward("Maximum", X, Y, expected=elements(max, X, Y)),
    forward("Minimum", X, Y, expected=elements(min, X, Y)),
    forward("Mul", 2.0, X, expected=elements(lambda x: 2 * x, X)),
    forward("Muls", X, 3, expected=elements(lambda x: 3 * x, X)),
    forward("NotEqual", INTS, OTHER_INTS, expected=elements(lambda x, y: x != y, INTS, OTHER_INTS, dtype=bool)),
    forward("Pow", POSITIVE, Y, expected=elements(lambda x, y: math.exp(y * math.log(x)), POSITIVE, Y)),
    forward("PowTensorScalar", X, 3.0, expected=elements(lambda x: x * x * x, X)),
    forward("RealDiv", X, Y, expected=elements(lambda x, y: x / y, X, Y)),
    forward("Select", BOOLS, X, Y, expected=elements(lambda c, x, y: x if c else y, BOOLS, X, Y)),
    forward("Sub", X, Y, expected=elements(lambda x, y: x - y, X, Y)),
]

OF_NUMBERS = [
    forward("ScalarAdd", 7, 2, expected=9),
    forward("ScalarDiv", 7, 2, expected=3.5),
    forward("ScalarEq", 7, 2, expected=False),
    forward("ScalarFloorDiv", -7, 2, expected=-4),
    forward("ScalarGe", 7, 7, expected=True),
    forward("ScalarGt", 7, 7, expected=False),
    forward("ScalarLe", 7, 7, expected=True),
    forward("ScalarLt", 7, 7, expected=False),
    forward("ScalarMod", -7, 4, expected=1),
    forward("ScalarMul", 7, 2, expected=14),
    forward("ScalarSub", 7, 2, expected=5),
    forward("ScalarToTensor", 7, 43, expected=np.array(7.0)),
    forward("ScalarUsub", 7, expected=-7),
    forward("TensorToScalar", np.array(2.5), expected=2.5),
]

LARGEST_AT = np.array([max(range(4), key=row.item) for row in X], np.int32)

REDUCTIONS = [
    forward("AddN", (X, Y, X), expected=2 * X + Y),
    forward("ArgMaxWithValue", X, 1, False, expected=(LARGEST_AT, np.array([max(row) for row in X]))),
    forward("BatchMatMul", CUBE, CUBE, False, True, expected=np.einsum("bij,bkj->bik", CUBE, CUBE)),
    forward("BatchMatMulExt", CUBE, CUBE.swapaxes(1, 2), expected=np.einsum("bij,bkj->bik", CUBE, CUBE)),
    forward("MatMul", X, Y, True, False, expected=np.einsum("ki,kj->ij", X, Y)),
    forward("MatMul", X, Y, expected=np.einsum("ik,jk->ij", X, Y), transpose_b=True),
    forward("MeanExt", X, None, expected=np.array(math.fsum(X.ravel()) / 12)),
    forward("ReduceMax", X, (1,), True, expected=np.array([[max(row)] for row in X])),
    forward("ReduceMean", CUBE, (0, 2), expected=np.einsum("ijk->j", CUBE) / 8),
    forward("ReduceSum", CUBE, (0, 2), False, False, expected=np.einsum("ijk->j", CUBE)),
    forward("ReduceSum", X, (), expected=np.array(math.fsum(X.ravel()))),
    forward("Softmax", X, (-1,), expected=np.array([[math.exp(x) / sum(map(math.exp, r)) for x in r] for r in X])),
    forward("SumExt", X, 1, True, None, expected=np.array([[sum(row)] for row in X])),
    forward("SumExt", INTS, None, False, None, expected=np.array(4, np.int32)),
]

AT_3_0_2 = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]], bool)
FOUR_ROWS = CUBE[0].T
FOUR_SEGMENTS = np.array([FOUR_ROWS[1], FOUR_ROWS[3], FOUR_ROWS[0] + FOUR_ROWS[2], [0, 0, 0]])
TWO_SEGMENTS = np.array([CUBE[0, 0], CUBE[0, 2] + CUBE[1, 0] + CUBE[1, 1]])

SHAPES = [
    forward("BroadcastTo", X[:1], (3, 4), expected=np.array([X[0]] * 3)),
    forward("Cast", np.array([1.75, -2.5]), 34, expected=np.array([1, -2], np.int32)),
    forward("Concat", (X, Y), 1, expected=np.array([[*x, *y] for x, y in zip(X, Y)])),
    forward("Concat", (X, Y), expected=np.array([*X, *Y]), axis=0),
    forward("ExpandDims", X, -1, expected=np.array([[[x] for x in row] for row in X])),
    forward("FillV2", (2, 2), np.array(3, np.int32), expected=np.array([[3, 3], [3, 3]], np.int32)),
    forward("Gather", X, np.array([[2, 0]], np.int32), 0, 0, expected=np.array([[X[2], X[0]]])),
    forward("Gather", X, np.array([3], np.int32), 1, 0, expected=X[:, 3:]),
    forward("GatherD", X, 1, np.array([[3], [0], [2]]), expected=np.array([[X[0, 3]], [X[1, 0]], [X[2, 2]]])),
    forward("InplaceScatterSrc", X, 1, np.array([[3], [0], [2]]), Y, expected=np.where(AT_3_0_2, Y[:, :1], X)),
    forward("OneHot", ROWS[:2], 3, np.array(5.0), np.array(-1.0), -1, expected=np.array([[-1.0, -1, 5], [5, -1, -1]])),
    forward("OneHot", ROWS[:2], 3, np.array(1.0), np.array(0.0), 0, expected=np.array([[0.0, 1], [0, 0], [1, 0]])),
    forward("Ones", (2,), 43, expected=np.array([1.0, 1.0])),
    forward("Rank", CUBE, expected=3),
    forward("Reshape", X, (2, -1), expected=np.array([X.ravel()[:6], X.ravel()[6:]])),
    forward("Shape", CUBE, expected=(2, 3, 4)),
    forward("Slice", X, (1, 1), (2, 2), expected=np.array([X[1, 1:3], X[2, 1:3]])),
    forward("Slice", X, (1, 0), (-1, 4), expected=X[1:]),
    forward("Split", X, 1, 2, expected=(X[:, :2], X[:, 2:])),
    forward("Split", X, expected=(X[:1], X[1:2], X[2:]), axis=0, output_num=3),
    forward("SplitWithSize", X, (1, 3), 1, expected=(X[:, :1], X[:, 1:])),
    forward("Squeeze", CUBE[:, :1, :1], (1,), expected=CUBE[:, 0, :1]),
    forward("StridedSlice", X, (0, 3), (3, 0), (2, -1), 0, 0, 0, 0, 0, expected=np.array([X[0, 3:0:-1], X[2, 3:0:-1]])),
    forward("StridedSlice", X, (1, 1), (9, 1), (1, 1), 1, 2, 0, 0, 0, expected=X[:, 1:]),
    forward("StridedSlice", X, (1, 0), (2, 4), (1, 1), 0, 0, 0, 0, 1, expected=X[1]),
    forward("TensorShape", CUBE, expected=np.array([2, 3, 4])),
    forward("Tile", X, (2, 1), expected=np.array([*X, *X])),
    forward("Transpose", CUBE, (2, 0, 1), expected=np.einsum("ijk->kij", CUBE)),
    forward("UnsortedSegmentSum", FOUR_ROWS, ROWS, 4, expected=FOUR_SEGMENTS),
    forward("UnsortedSegmentSum", CUBE, np.array([[0, -1, 1], [1, 1, -5]]), 2, expected=TWO_SEGMENTS),
    forward("View", X, (12,), expected=X.ravel()),
    forward("Zeros", (2,), 43, expected=np.array([0.0, 0.0])),
]


def normed(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row by row."""
    inverse = np.array([[(sum(value * value for value in row) / len(row) + 1e-3) ** -0.5] for row in x])
    return np.array([[a * scale[0] * w for a, w in zip(row, weight)] for row, scale in zip(x, inverse)]), inverse


def rotated_pairs(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Elements i and i + D / 2 of a head as complex numbers, turned; x [B, N, S, D], angles [S, D / 2]."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], -1)


HEADS, ANGLES = RANDOM.standard_normal((2, 3, 5, 4)), RANDOM.standard_normal((5, 2))
COS, SIN = np.tile(np.cos(ANGLES), 2)[None, None], np.tile(np.sin(ANGLES), 2)[None, None]

FUSED = [
    forward("AddRmsNorm", X, Y, Y[0], 1e-3, expected=(*normed(X + Y, Y[0]), X + Y)),
    forward("RmsNorm", X, Y[0], 1e-3, expected=normed(X, Y[0])),
    forward("RotaryPositionEmbedding", HEADS, COS, SIN, 0, expected=rotated_pairs(HEADS, ANGLES)),
    forward(
        "RotaryPositionEmbedding",
        *(array.swapaxes(1, 2) for array in (HEADS, COS, SIN)),
        0,
        expected=rotated_pairs(HEADS, ANGLES).swapaxes(1, 2),
    ),
    forward("Swiglu", X, -1, expected=elements(lambda a, b: a * b / (1 + math.exp(-a)), X[:, :2], X[:, 2:])),
    forward("Swiglu", X[:2], 0, expected=elements(lambda a, b: a * b / (1 + math.exp(-a)), X[0], X[1])[None]),
]

FORWARD = [*OF_ONE, *OF_TWO, *OF_NUMBERS, *REDUCTIONS, *SHAPES, *FUSED]


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (np.asarray(found).dtype, np.shape(found)) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
    else:
        assert found == expected


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.name)
def test_a_kernel_computes_what_its_primitive_is_documented_to(case):
    with np.errstate(all="ignore"):
        found = evaluate(case.name, *case.operands, result=declared(case.expected), **case.attributes)
    assert_same(found, case.expected)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """A kernel's gradients of `forward` with respect to `inputs`, the first few of what `backward` gives."""

    name: str
    inputs: tuple[np.ndarray, ...]
    forward: Callable[..., np.ndarray]
    backward: Callable[..., Any]


def gradient(name: str, *inputs: np.ndarray, forward: Any, operands: Any, result: Any = None) -> Gradient:
    """`operands(grad, output, *inputs)`: those of the gradient's kernel."""
    return Gradient(
        name=name,
        inputs=inputs,
        forward=forward,
        backward=lambda *given: evaluate(name, *operands(*given), result=result),
    )


def attention_settings(layout: int, mode: int, pre_tokens: int = 99, next_tokens: int = 99, num_heads: int = 4):
    return num_heads, 1.0, 0.7, pre_tokens, next_tokens, 0, layout, mode


CAUSAL_MASK = np.triu(np.ones((2048, 2048), np.uint8), 1)
NO_LENGTHS = (None, None, None)
UNDEFINED_PART = (None, None, floats(1), None)


def attend(q, k, v, mask, settings):
    return evaluate(
        "FlashAttentionScore", q, k, v, None, None, None, mask, *NO_LENGTHS, *settings, result=UNDEFINED_PART
    )


def attention_gradient(layout: int, mode: int, mask: Any, q: np.ndarray, kv: np.ndarray, **tokens: int) -> Gradient:
    settings = attention_settings(layout, mode, **tokens)

    def operands(grad, output, q, k, v):
        largest, total, softmax_in, attended = attend(q, k, v, mask, settings)
        saved = largest, total, softmax_in, attended
        return q, k, v, grad, None, None, None, mask, *saved, *NO_LENGTHS, *settings

    return gradient(
        "FlashAttentionScoreGrad",
        q,
        *kv,
        forward=lambda q, k, v: attend(q, k, v, mask, settings)[3],
        operands=operands,
        result=(None, None, None, floats(0)),
    )


Q_BNSD, KV_BNSD = RANDOM.standard_normal((2, 4, 3, 2)), RANDOM.standard_normal((2, 2, 2, 5, 2))
Q_BSH, KV_BSH = RANDOM.standard_normal((2, 5, 8)), RANDOM.standard_normal((2, 2, 5, 4))
FULL_MASK = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], np.uint8)
INDEX = np.array([[3, 3], [0, 1], [2, 0]])
SLICE = (0, 3), (3, 0), (2, -1)

GRADIENTS = [
    attention_gradient(0, 2, CAUSAL_MASK, Q_BSH, KV_BSH, next_tokens=0),
    attention_gradient(1, 0, None, Q_BNSD, KV_BNSD),
    attention_gradient(1, 0, FULL_MASK, Q_BNSD, KV_BNSD),
    attention_gradient(1, 3, CAUSAL_MASK, Q_BNSD, KV_BNSD),
    attention_gradient(1, 4, CAUSAL_MASK, Q_BNSD, KV_BNSD, pre_tokens=2, next_tokens=-1),
    gradient(
        "GatherDGradV2",
        X,
        forward=lambda x: evaluate("GatherD", x, 1, INDEX),
        operands=lambda grad, y, x: (x, 1, INDEX, grad),
    ),
    gradient("ReluGrad", X, forward=lambda x: evaluate("ReLU", x), operands=lambda grad, y, x: (grad, y)),
    gradient(
        "RmsNormGrad",
        X,
        Y[0],
        forward=lambda x, w: evaluate("RmsNorm", x, w, 1e-3)[0],
        operands=lambda grad, y, x, w: (grad, x, evaluate("RmsNorm", x, w, 1e-3)[1], w),
    ),
    gradient(
        "RmsNormGrad",
        CUBE,
        Y,
        forward=lambda x, w: evaluate("RmsNorm", x, w, 1e-3)[0],
        operands=lambda grad, y, x, w: (grad, x, evaluate("RmsNorm", x, w, 1e-3)[1], w),
    ),
    gradient(
        "RotaryPositionEmbeddingGrad",
        HEADS,
        COS,
        SIN,
        forward=lambda x, cos, sin: evaluate("RotaryPositionEmbedding", x, cos, sin, 0),
        operands=lambda grad, y, x, cos, sin: (grad, cos, sin, x, 0),
    ),
    gradient("RsqrtGrad", POSITIVE, forward=lambda x: evaluate("Rsqrt", x), operands=lambda grad, y, x: (y, grad)),
    gradient("SiLUGrad", X, forward=lambda x: evaluate("SiLU", x), operands=lambda grad, y, x: (grad, x)),
    gradient(
        "SoftmaxBackward",
        X,
        forward=lambda x: evaluate("Softmax", x, 0),
        operands=lambda grad, y, x: (grad, y, 0),
    ),
    gradient("SqrtGrad", POSITIVE, forward=lambda x: evaluate("Sqrt", x), operands=lambda grad, y, x: (y, grad)),
    gradient(
        "StridedSliceGrad",
        X,
        forward=lambda x: evaluate("StridedSlice", x, *SLICE),
        operands=lambda grad, y, x: (grad, x.shape, *SLICE),
    ),
    gradient(
        "SwigluGrad", HEADS, forward=lambda x: evaluate("Swiglu", x, -1), operands=lambda grad, y, x: (grad, x, -1)
    ),
    gradient(
        "SwigluGrad", CUBE, forward=lambda x: evaluate("Swiglu", x, 0), operands=lambda grad, y, x: (grad, x, 0)
    ),
]


def central_differences(function: Callable[..., float], inputs: tuple[np.ndarray, ...], which: int) -> np.ndarray:
    step, result = 1e-5, np.empty_like(inputs[which])
    for place in np.ndindex(result.shape):
        values = []
        for sign in (1, -1):
            moved = [array.copy() for array in inputs]
            moved[which][place] += sign * step
            values.append(function(*moved))
        result[place] = (values[0] - values[1]) / (2 * step)
    return result


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: case.name)
def test_a_gradients_kernel_agrees_with_central_differences(case):
    output = case.forward(*case.inputs)
    grad = np.random.RandomState(2).standard_normal(output.shape)
    found = case.backward(grad, output, *case.inputs)
    found = found if isinstance(found, tuple) else (found,)
    for which, given in enumerate(case.inputs):
        wanted = central_differences(lambda *inputs: float(np.sum(case.forward(*inputs) * grad)), case.inputs, which)
        assert found[which].shape == given.shape
        np.testing.assert_allclose(found[which], wanted, rtol=1e-7, atol=1e-8)


VISIBLE = {  # whether query i of 3 sees key j of 5
    "no mask": (0, None, {}, lambda i, j: True),
    "a mask": (0, FULL_MASK, {}, lambda i, j: not FULL_MASK[i, j]),
    "all of a mask": (1, FULL_MASK, {"next_tokens": 0}, lambda i, j: not FULL_MASK[i, j]),
    "causal from the top left": (2, CAUSAL_MASK, {}, lambda i, j: j <= i),
    "causal from the bottom right": (3, CAUSAL_MASK, {}, lambda i, j: j <= i + 2),
    "a band": (4, CAUSAL_MASK, {"pre_tokens": 1, "next_tokens": 0}, lambda i, j: i + 1 <= j <= i + 2),
}


@pytest.mark.parametrize("layout", ["BSH", "BNSD"])
@pytest.mark.parametrize("mask", VISIBLE)
def test_flash_attention_is_a_softmax_over_the_keys_that_a_query_sees(layout, mask):
    mode, given, tokens, visible = VISIBLE[mask]
    q, (k, v) = Q_BNSD, KV_BNSD
    wanted, largest, total = np.zeros(q.shape), np.zeros(q.shape[:3]), np.zeros(q.shape[:3])
    for batch, head, i in np.ndindex(q.shape[:3]):
        seen = [j for j in range(5) if visible(i, j)]
        scores = [0.7 * float(q[batch, head, i] @ k[batch, head // 2, j]) for j in seen]
        largest[batch, head, i] = max(scores)
        weights = [math.exp(score - max(scores)) for score in scores]
        total[batch, head, i] = sum(weights)
        wanted[batch, head, i] = sum(w * v[batch, head // 2, j] for w, j in zip(weights, seen)) / sum(weights)

    def laid_out(x):
        return x if layout == "BNSD" else x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    settings = attention_settings(("BSH", "BNSD").index(layout), mode, **tokens)
    found = attend(laid_out(q), laid_out(k), laid_out(v), given, settings)
    assert_same(found[0], np.repeat(largest[..., None], 8, -1))
    assert_same(found[1], np.repeat(total[..., None], 8, -1))
    assert_same(found[3], laid_out(wanted))


def test_what_an_operator_leaves_undefined_is_nan():
    assert np.isnan(attend(Q_BNSD, *KV_BNSD, None, attention_settings(1, 0))[2]).all()
    found = evaluate(
        "RotaryPositionEmbeddingGrad", HEADS, COS, SIN, None, 0, result=(None, floats(1, 1, 5, 4), floats(1, 1, 5, 4))
    )
    assert np.isnan(found[1]).all() and np.isnan(found[2]).all() and np.isfinite(found[0]).all()


def test_adamw_moves_weight_and_moments_in_place():
    weight, first, second, grad = (array.copy() for array in (X, Y, POSITIVE, X * Y))
    lr, beta1, beta2, eps, decay = np.array([0.1]), np.array(0.9), np.array(0.99), 1e-3, np.array(0.2)
    found = evaluate("AdamWeightDecay", weight, first, second, lr, beta1, beta2, eps, decay, grad, False)
    wanted_first = 0.9 * Y + 0.1 * grad
    wanted_second = 0.99 * POSITIVE + 0.01 * grad**2
    wanted = X * (1 - 0.1 * 0.2) - 0.1 * wanted_first / (wanted_second**0.5 + 1e-3)
    for one, other in zip((weight, first, second), (wanted, wanted_first, wanted_second)):
        np.testing.assert_allclose(one, other, rtol=1e-13)
    assert [one is other for one, other in zip(found, (weight, first, second))] == [True] * 3


@pytest.mark.parametrize("name, wanted", [("Assign", Y), ("AssignAdd", X + Y), ("AssignSub", X - Y)])
def test_an_assignment_changes_its_parameter_and_returns_it(name, wanted):
    parameter = X.copy()
    assert evaluate(name, parameter, Y) is parameter
    assert_same(parameter, wanted)


def test_an_assignment_takes_one_element_for_a_scalar():
    parameter = np.array(2, np.int32)
    evaluate("AssignAdd", parameter, np.array([1], np.int32))
    assert parameter == 3


def test_every_kernel_is_tested_here():
    in_place = {"AdamWeightDecay", "Assign", "AssignAdd", "AssignSub", "FlashAttentionScore"}
    assert {case.name for case in [*FORWARD, *GRADIENTS]} | in_place == KERNELS.keys()


def test_control_moves_values_without_computing():
    closure = CONTROL["Partial"](Closure(function="f", bound=(1,)), 2, 3)
    assert closure == Closure(function="f", bound=(1, 2, 3))
    assert CONTROL["MakeTuple"](1, MONAD) == CONTROL["RealMakeTuple"](1, MONAD) == (1, MONAD)
    assert CONTROL["TupleGetItem"]((5, 6), 1) == CONTROL["RealTupleGetItem"]((5, 6), 1) == 6
    assert CONTROL["Depend"](X, MONAD) is CONTROL["Identity"](X) is CONTROL["StopGradient"](X) is X
    assert CONTROL["UpdateState"](MONAD, X) is MONAD
    assert [CONTROL["Switch"](np.array(condition), "yes", "no") for condition in (True, False)] == ["yes", "no"]


@pytest.mark.parametrize("name", ["Load", "TensorMove"])
def test_a_loaded_value_stays_when_the_parameter_changes(name):
    parameter = X.copy()
    loaded = CONTROL[name](parameter, MONAD)
    parameter += 1
    assert_same(loaded, X)


@pytest.mark.parametrize(
    "name, operands, message",
    [
        ("SplitWithSize", (X, (1, 2), 1), r"sizes \(1, 2\) do not add up to 4"),
        ("StridedSlice", (X, (0, 0), (1, 1), (1, 1), 0, 0, 1, 0, 0), "ellipsis and new-axis masks have no kernel"),
        ("Gather", (X, ROWS, 0, 1), "batch_dims=1 has no kernel"),
        ("Gather", (X, np.array([3, -1]), 0, 0), "indices -1 to 3 reach outside 3 rows"),
        ("RotaryPositionEmbedding", (HEADS, COS, SIN, 1), "mode 1 has no kernel"),
    ],
)
def test_what_a_kernel_does_not_know_is_refused(name, operands, message):
    with pytest.raises(ValueError, match=message):
        evaluate(name, *operands)


@pytest.mark.parametrize(
    "mask, settings, message",
    [
        (None, (4, 0.9, 0.7, 99, 99, 0, 1, 0), "no kernel here for .*keep_prob=0.9.*there is one for keep_prob 1"),
        (None, attention_settings(2, 0), "layout=2"),
        (None, attention_settings(1, 5), "sparse_mode=5"),
        (FULL_MASK, attention_settings(1, 2), "sparse_mode 2 needs a causal mask of 2048 by 2048"),
        (FULL_MASK, attention_settings(1, 0, next_tokens=0), "shows keys outside the pre_tokens and next_tokens"),
    ],
)
def test_attention_that_has_no_kernel_is_refused(mask, settings, message):
    with pytest.raises(ValueError, match=message):
        attend(Q_BNSD, *KV_BNSD, mask, settings)


def test_attention_with_a_shift_is_refused():
    operands = (Q_BNSD, *KV_BNSD, X, None, None, None, *NO_LENGTHS, *attention_settings(1, 0))
    with pytest.raises(ValueError, match="with shift, dropout, padding, prefix or lengths"):
        evaluate("FlashAttentionScore", *operands, result=UNDEFINED_PART)
