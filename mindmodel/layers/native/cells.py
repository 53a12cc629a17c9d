"""The C++ kernels as Cells, with the interfaces of the formulas in cpu.py and the same results to rounding."""

from __future__ import annotations

from typing import Callable, Sequence, Union

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops.signature import make_sig, sig_rw

from mindmodel.layers.kernels import Kernels
from mindmodel.layers.native import library
from mindmodel.layers.shared import EmbeddingByGather

Shapes = Union[tuple, Callable]
ALIKE = object()
"""As an output's dtype: that of the first input."""


def kernel(name: str, shapes: Shapes, *dtypes) -> ops.Custom:
    """A function of the library as an operator.

    Args:
        name: of the function.
        shapes: output shape, or tuple of them, from the input shapes.
        dtypes: one per output.
    """

    def output_dtypes(*inputs):
        found = tuple(inputs[0] if dtype is ALIKE else dtype for dtype in dtypes)
        return found if len(found) > 1 else found[0]

    return ops.Custom(f"{library.in_use()}:{name}", shapes, output_dtypes, "aot")


def in_place(operator: ops.Custom, written: Sequence[bool]) -> ops.Custom:
    """The operator, which writes to those inputs: MindSpore must know, to order it with what reads them."""
    operator.set_signatures(tuple(make_sig("array", sig_rw.RW_WRITE if write else sig_rw.RW_READ) for write in written))
    operator.add_prim_attr("side_effect_mem", True)
    return operator


class EmbeddingNative(EmbeddingByGather):
    """Rows of a table; those of one id are summed in their order in the backward pass."""

    def __init__(self, dtype):
        super().__init__(dtype)
        self.backward = kernel("embedding_backward", lambda ids, dout, table: table, mstype.float32)

    def bprop(self, ids, table, out, dout):
        return ops.zeros_like(ids), self.backward(ids, dout, table)


class LinearNative(nn.Cell):
    """x w'. Inputs: x [T, inputs], weight float32 [outputs, inputs]. Outputs: [T, outputs] in x's dtype."""

    def __init__(self):
        super().__init__()
        self.forward = kernel("linear_forward", lambda x, weight: (x[0], weight[0]), ALIKE)
        self.backward = kernel("linear_backward", lambda x, weight, dout: (x, weight), ALIKE, mstype.float32)

    def construct(self, x, weight):
        return self.forward(x, weight)

    def bprop(self, x, weight, out, dout):
        return self.backward(x, weight, dout)


class RMSNormNative(nn.Cell):
    """x / rms(x) * weight. Inputs: x [T, D], weight float32 [D]. Outputs: [T, D]."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = Tensor([eps], mstype.float32)
        self.forward = kernel("rms_norm_forward", lambda x, weight, eps: x, ALIKE)
        self.backward = kernel("rms_norm_backward", lambda x, weight, *rest: (x, weight), ALIKE, mstype.float32)

    def construct(self, x, weight):
        return self.forward(x, weight, self.eps)

    def bprop(self, x, weight, out, dout):
        return self.backward(x, weight, self.eps, dout)


class ResidualNormNative(RMSNormNative):
    """x, and x / rms(x) * weight. Inputs: as RMSNormNative's. Outputs: twice [T, D]."""

    def __init__(self, size: int, eps: float):
        super().__init__(size, eps)
        self.backward = kernel("residual_norm_backward", lambda x, weight, *rest: (x, weight), ALIKE, mstype.float32)

    def construct(self, x, weight):
        return x, self.forward(x, weight, self.eps)

    def bprop(self, x, weight, out, dout):
        return self.backward(x, weight, self.eps, dout[1], dout[0])


class SwiGLUNative(nn.Cell):
    """silu(gate) * up. Inputs: x [T, 2 F] in `num_blocks` pairs of (gate, up). Outputs: [T, F]."""

    def __init__(self, num_blocks: int):
        super().__init__()
        self.num_blocks = Tensor([num_blocks], mstype.int32)
        self.forward = kernel("swiglu_forward", lambda x, num_blocks: (x[0], x[1] // 2), ALIKE)
        self.backward = kernel("swiglu_backward", lambda x, num_blocks, dout: x, ALIKE)

    def construct(self, x):
        return self.forward(x, self.num_blocks)

    def bprop(self, x, out, dout):
        return (self.backward(x, self.num_blocks, dout),)


class AttentionNative(nn.Cell):
    """Rotary causal attention; never builds the S x S matrix.

    Inputs: x [B S, (H + 2 K) d]. Outputs: [B S, H d], log-denominators float32 [B, H, S].
    """

    def __init__(self, num_heads, num_kv_heads, head_size, cos: np.ndarray, sin: np.ndarray, name: str):
        super().__init__()
        seq_len, width = cos.shape[0], num_heads * head_size
        self.cos, self.sin = Tensor(cos), Tensor(sin)
        self.heads = Tensor([num_heads, num_kv_heads], mstype.int32)

        def outputs(x, *rest):
            return (x[0], width), (x[0] // seq_len, num_heads, seq_len)

        self.forward = kernel(f"{name}_forward", outputs, ALIKE, mstype.float32)
        self.backward = self.backward_kernel(f"{name}_backward")

    def backward_kernel(self, name: str) -> ops.Custom:
        """Gradients of the inputs that have one."""
        return kernel(name, lambda x, *rest: x, ALIKE)

    def construct(self, x):
        return self.forward(x, self.cos, self.sin, self.heads)

    def bprop(self, x, out, dout):
        return (self.backward(x, self.cos, self.sin, self.heads, out[0], out[1], dout[0]),)


class NormedAttentionNative(AttentionNative):
    """The same with every query and key head normalised before it is rotated.

    Inputs: x [B S, (H + 2 K) d], weights of the two norms float32 [d], their eps float32 [1]. Outputs: the same.
    """

    def backward_kernel(self, name: str) -> ops.Custom:
        """Gradients of x and of the weights of both norms."""

        def outputs(x, cos, sin, heads, q_weight, k_weight, *rest):
            return x, q_weight, k_weight

        return kernel(name, outputs, ALIKE, mstype.float32, mstype.float32)

    def construct(self, x, q_weight, k_weight, eps):
        return self.forward(x, self.cos, self.sin, self.heads, q_weight, k_weight, eps)

    def bprop(self, x, q_weight, k_weight, eps, out, dout):
        dx, dq_weight, dk_weight = self.backward(
            x, self.cos, self.sin, self.heads, q_weight, k_weight, eps, out[0], out[1], dout[0]
        )
        return dx, dq_weight, dk_weight, ops.zeros_like(eps)


class CausalAttentionNative(nn.Cell):
    """Causal attention with rotary embedding over rows of the fused projection.

    Inputs: x [B S, (H + 2 K) d]; q_norm and k_norm: RMSNorm over [N, d], or None. Outputs: [B S, H d].
    """

    def __init__(self, num_heads, num_kv_heads, head_size, cos: np.ndarray, sin: np.ndarray):
        super().__init__()
        self.plain = AttentionNative(num_heads, num_kv_heads, head_size, cos, sin, "attention")
        self.normed = NormedAttentionNative(num_heads, num_kv_heads, head_size, cos, sin, "attention_qk_norm")

    def construct(self, x, q_norm, k_norm):
        if q_norm is None:
            return self.plain(x)[0]
        return self.normed(x, q_norm.weight, k_norm.weight, q_norm.rms_norm.eps)[0]


class HeadLossNative(nn.Cell):
    """Output layer and loss over blocks of rows; all logits never stand side by side.

    The gradients are made in the forward pass, while a block's logits are at hand; the backward pass scales them.

    Inputs: hidden [T, D], weight float32 [V, D], labels int32 [T].
    Outputs: cross entropy + z_loss * squared log-denominator, cross entropy, gradients of the first by hidden and
    weight (absent without `gradient`, for evaluation).
    """

    def __init__(self, vocab_size: int, z_loss: float, gradient: bool):
        super().__init__()
        self.z_loss, self.gradient = Tensor([z_loss], mstype.float32), gradient
        if gradient:
            dtypes = mstype.float32, ALIKE, mstype.float32
            self.sums = kernel("head_loss", lambda hidden, weight, labels, z: ((2,), hidden, weight), *dtypes)
        else:
            self.sums = kernel("head_loss_forward", lambda hidden, weight, labels, z: (2,), mstype.float32)

    def construct(self, hidden, weight, labels):
        if not self.gradient:
            sums = self.sums(hidden, weight, labels, self.z_loss)
            return sums[0], sums[1]
        sums, dhidden, dweight = self.sums(hidden, weight, labels, self.z_loss)
        return sums[0], sums[1], dhidden, dweight

    def bprop(self, hidden, weight, labels, out, dout):
        return out[2] * ops.cast(dout[0], hidden.dtype), out[3] * dout[0], ops.zeros_like(labels)


class SquareSumNative(nn.Cell):
    """Sum of all squares. Inputs: tuple of float32 tensors. Outputs: scalar."""

    def __init__(self):
        super().__init__()
        self.square_sum = kernel("square_sum", lambda *tensors: (1,), mstype.float32)

    def construct(self, tensors):
        return self.square_sum(*tensors).reshape(())


class SquareSumsNative(nn.Cell):
    """Sum of all squares of each. Inputs: tuple of n tensors of one dtype. Outputs: float32 [n]."""

    def __init__(self):
        super().__init__()
        self.square_sums = kernel("square_sums", lambda *tensors: (len(tensors),), mstype.float32)

    def construct(self, tensors):
        return self.square_sums(*tensors)


class AdamWNative(nn.Cell):
    """AdamW without bias correction, one kernel for all parameters, in place. Interface: AdamWByTensor's."""

    def __init__(self, decays: tuple[bool, ...], checks_finite: bool, norms: bool = False):
        super().__init__(auto_prefix=False)
        self.decays = Tensor(np.array(decays, np.float32))
        if norms:
            adamw = kernel("adamw_with_norms", lambda *inputs: (3, len(decays)), mstype.float32)
        else:
            adamw = kernel("adamw", lambda *inputs: (1,), mstype.float32)
        self.adamw = in_place(adamw, (False, False, *[True] * (3 * len(decays)), *[False] * len(decays)))
        self.stack = ops.Stack()

    def construct(self, parameters, first, second, grads, lr, beta1, beta2, eps, decay, scale, apply):
        settings = self.stack((lr, beta1, beta2, eps, scale, ops.cast(apply, mstype.float32)))
        return (self.adamw(settings, self.decays * decay, *parameters, *first, *second, *grads),)


KERNELS = Kernels(
    embedding=EmbeddingNative,
    linear=LinearNative,
    rms_norm=RMSNormNative,
    residual_norm=ResidualNormNative,
    swiglu=SwiGLUNative,
    causal_attention=CausalAttentionNative,
    head_loss=HeadLossNative,
    square_sum=SquareSumNative,
    square_sums=SquareSumsNative,
    adamw=AdamWNative,
)
