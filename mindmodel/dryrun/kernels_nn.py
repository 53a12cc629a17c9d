"""What MindSpore's operators of a decoder, those of its gradients and of its optimizer compute, in NumPy."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from mindmodel.dryrun.kernels import Array, Context, Kernel, axes, plain, sigmoid, undefined


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def silu_grad(grad: Array, x: Array) -> Array:
    """Gradient of silu."""
    gate = sigmoid(x)
    return grad * (gate + x * gate * (1 - gate))


def swiglu(context: Context, x: Array, axis: int = -1) -> Array:
    """silu(first half) * second half of an axis."""
    gate, up = np.split(x, 2, axis)
    return silu(gate) * up


def swiglu_grad(context: Context, grad: Array, x: Array, axis: int = -1) -> Array:
    """Gradient of swiglu."""
    gate, up = np.split(x, 2, axis)
    return np.concatenate([silu_grad(grad * up, gate), grad * silu(gate)], axis)


def softmax(context: Context, x: Array, axis: Any = -1) -> Array:
    """exp(x), divided by its sum over some axes."""
    shifted = np.exp(x - np.max(x, axes(axis), keepdims=True))
    return shifted / np.sum(shifted, axes(axis), keepdims=True)


def softmax_grad(context: Context, grad: Array, y: Array, axis: Any = -1) -> Array:
    """Gradient of softmax, whose result was y."""
    return y * (grad - np.sum(grad * y, axes(axis), keepdims=True))


def rms_norm(context: Context, x: Array, weight: Array, eps: float = 1e-6) -> tuple[Array, Array]:
    """x / rms(x) * weight over the dims of the weight, and 1 / rms(x)."""
    normed = tuple(range(-weight.ndim, 0))
    inverse = 1 / np.sqrt(np.mean(x * x, normed, keepdims=True) + eps)
    return x * inverse * weight, inverse


def rms_norm_grad(context: Context, grad: Array, x: Array, inverse: Array, weight: Array) -> tuple[Array, Array]:
    """Gradients of rms_norm with respect to x and the weight."""
    normed = tuple(range(-weight.ndim, 0))
    direction, scaled = x * inverse, grad * weight
    x_grad = inverse * (scaled - direction * np.mean(scaled * direction, normed, keepdims=True))
    return x_grad, np.sum(grad * direction, tuple(range(x.ndim - weight.ndim)))


def add_rms_norm(context: Context, a: Array, b: Array, weight: Array, eps: float = 1e-6) -> tuple[Array, Array, Array]:
    """rms_norm of a + b, and a + b."""
    return *rms_norm(context, a + b, weight, eps), a + b


def _rotated(x: Array) -> Array:
    """(first, second) half of the last dim as (-second, first)."""
    first, second = np.split(x, 2, -1)
    return np.concatenate([-second, first], -1)


def _refuse_interleaved(mode: int) -> None:
    if mode != 0:
        raise ValueError(f"mode {mode} has no kernel here, only 0, which rotates halves")


def rotary(context: Context, x: Array, cos: Array, sin: Array, mode: int = 0) -> Array:
    """Rotary position embedding; cos and sin broadcast against x."""
    _refuse_interleaved(mode)
    return x * cos + _rotated(x) * sin


def rotary_grad(
    context: Context, grad: Array, cos: Array, sin: Array, x: Optional[Array] = None, mode: int = 0
) -> tuple[Array, Array, Array]:
    """Gradients of rotary with respect to x, cos and sin; the last two are undefined without x."""
    _refuse_interleaved(mode)
    x_grad = grad * cos - _rotated(grad * sin)
    if x is None:
        return x_grad, undefined(context.result[1]), undefined(context.result[2])
    return x_grad, _summed_to(grad * x, cos.shape), _summed_to(grad * _rotated(x), sin.shape)


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the dims in which a tensor of this shape was broadcast."""
    return np.sum(x, tuple(dim for dim, size in enumerate(shape) if size == 1), keepdims=True)


def adam_weight_decay(
    context: Context, weight: Array, first: Array, second: Array, lr: Any, beta1: Any, beta2: Any, eps: Any, decay: Any,
    grad: Array, *_: Any,
) -> tuple[Array, Array, Array]:
    """AdamW without bias correction, in place.

    Source: `mindspore.ops.AdamWeightDecay`.
    """
    lr, beta1, beta2, eps, decay = (np.ravel(value)[0] for value in (lr, beta1, beta2, eps, decay))
    first[...] = beta1 * first + (1 - beta1) * grad
    second[...] = beta2 * second + (1 - beta2) * grad * grad
    weight[...] = weight - lr * (first / (np.sqrt(second) + eps) + decay * weight)
    return weight, first, second


KERNELS: dict[str, Kernel] = {
    "AdamWeightDecay": adam_weight_decay,
    "AddRmsNorm": add_rms_norm,
    "ReluGrad": plain(lambda grad, y: grad * (y > 0)),
    "RmsNorm": rms_norm,
    "RmsNormGrad": rms_norm_grad,
    "RotaryPositionEmbedding": rotary,
    "RotaryPositionEmbeddingGrad": rotary_grad,
    "RsqrtGrad": plain(lambda y, grad: -0.5 * grad * y**3),
    "SiLU": plain(silu),
    "SiLUGrad": plain(silu_grad),
    "Softmax": softmax,
    "SoftmaxBackward": softmax_grad,
    "SqrtGrad": plain(lambda y, grad: 0.5 * grad / y),
    "Swiglu": swiglu,
    "SwigluGrad": swiglu_grad,
}
