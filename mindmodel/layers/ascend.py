"""Ascend's fused operators behind the same interfaces as the CPU's formulas in cpu.py.

No backward pass is by hand: semi-automatic parallelism cuts a `construct` over devices, not a `bprop`.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import mint, nn, ops
from mindspore.ops.auto_generate import RmsNorm, RotaryPositionEmbedding, SplitWithSize, Swiglu
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from mindmodel.layers.kernels import Kernels
from mindmodel.layers.shared import AdamWByTensor, EmbeddingByGather

COMPRESSED_MASK_SIZE = 2048  # sparse_mode 2 takes one causal mask of this size for every sequence length


class EmbeddingAscend(EmbeddingByGather):
    """Its backward pass is MindSpore's own."""


class LinearAscend(nn.Cell):
    """x w'. Inputs: x [T, inputs], weight float32 [outputs, inputs]. Outputs: [T, outputs] in x's dtype."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x, weight):
        return self.matmul(x, ops.cast(weight, x.dtype))


class RMSNormAscend(nn.Cell):
    """x / rms(x) * weight, float32 inside the operator.

    The weight is handed over in x's dtype, for only then does MindSpore fuse the residual's addition into it.

    Inputs: x [T, D], weight float32 [D]. Outputs: [T, D].
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.rms_norm = RmsNorm(eps)

    def construct(self, x, weight):
        return self.rms_norm(x, ops.cast(weight, x.dtype))[0]


class ResidualNormAscend(RMSNormAscend):
    """x, and x / rms(x) * weight. Inputs: as RMSNormAscend's. Outputs: twice [T, D]."""

    def construct(self, x, weight):
        return x, self.rms_norm(x, ops.cast(weight, x.dtype))[0]


class SwiGLUAscend(nn.Cell):
    """silu(gate) * up. Inputs: x [T, 2 F] in `num_blocks` pairs of (gate, up). Outputs: [T, F]."""

    def __init__(self, num_blocks: int):
        super().__init__()
        self.num_blocks = num_blocks
        self.swiglu = Swiglu()

    def construct(self, x):
        pairs = x.reshape((x.shape[0], self.num_blocks, 2, -1))
        return self.swiglu(pairs, 2).reshape((x.shape[0], -1))


class CausalAttentionAscend(nn.Cell):
    """Causal flash attention with rotary embedding; never builds the S x S matrix.

    Inputs: x [B S, (H + 2 K) d]; q_norm and k_norm: Cells over [N, d], or None. Outputs: [B S, H d].
    """

    def __init__(self, num_heads, num_kv_heads, head_size, cos: np.ndarray, sin: np.ndarray):
        super().__init__()
        self.seq_len, self.head_size = cos.shape[0], head_size
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.group_size = num_heads // num_kv_heads
        self.cos, self.sin = (Tensor(table.reshape(1, -1, 1, head_size)) for table in (cos, sin))
        self.mask = Tensor(np.triu(np.ones((COMPRESSED_MASK_SIZE, COMPRESSED_MASK_SIZE), np.uint8), 1))
        self.split = SplitWithSize()  # mint.split makes strided views
        self.rope = RotaryPositionEmbedding()
        self.flash_attention = FlashAttentionScore(
            num_heads, scale_value=head_size**-0.5, next_tokens=0, input_layout="BSH", sparse_mode=2
        )

    def construct(self, x, q_norm, k_norm):
        seq_len, size = self.seq_len, self.head_size
        heads = x.reshape((-1, seq_len, self.num_kv_heads, self.group_size + 2, size))
        q, k, v = self.split(heads, (self.group_size, 1, 1), 3)
        if q_norm is not None:
            q, k = q_norm(q.reshape((-1, size))), k_norm(k.reshape((-1, size)))
        cos, sin = ops.cast(self.cos, x.dtype), ops.cast(self.sin, x.dtype)
        q = self.rope(q.reshape((-1, seq_len, self.num_heads, size)), cos, sin, 0)
        k = self.rope(k.reshape((-1, seq_len, self.num_kv_heads, size)), cos, sin, 0)
        q = q.reshape((-1, seq_len, self.num_heads * size))
        k = k.reshape((-1, seq_len, self.num_kv_heads * size))
        v = v.reshape((-1, seq_len, self.num_kv_heads * size))
        attended = self.flash_attention(q, k, v, None, None, None, self.mask, None, None, None)[3]
        return attended.reshape((-1, self.num_heads * size))


class HeadLossAscend(nn.Cell):
    """Output layer, and loss in float32, summed over the rows whose label is not negative.

    Inputs: hidden [T, D], weight float32 [V, D], labels int32 [T].
    Outputs: cross entropy + z_loss * squared log-denominator, cross entropy.
    """

    def __init__(self, vocab_size: int, z_loss: float, gradient: bool):
        super().__init__()
        self.z_loss = z_loss
        self.linear = LinearAscend()
        self.max_rows = ops.ReduceMax(keep_dims=True)
        self.pick = ops.GatherD()

    def construct(self, hidden, weight, labels):
        labels, logits = labels.reshape((-1, 1)), ops.cast(self.linear(hidden, weight), mstype.float32)
        keep = ops.cast(labels >= 0, mstype.float32)
        largest = ops.stop_gradient(self.max_rows(logits, (1,)))
        shifted = logits - largest
        log_sum = ops.log(mint.sum(ops.exp(shifted), 1, True))
        entropy = mint.sum((log_sum - self.pick(shifted, 1, ops.maximum(labels, 0))) * keep)
        if self.z_loss == 0.0:
            return entropy, entropy
        log_sum = log_sum + largest
        return entropy + self.z_loss * mint.sum(log_sum * log_sum * keep), entropy


class SquareSumAscend(nn.Cell):
    """Sum of all squares. Inputs: tuple of float32 tensors. Outputs: scalar."""

    def construct(self, tensors):
        total = Tensor(0.0, mstype.float32)
        for tensor in tensors:
            total = total + mint.sum(mint.square(tensor))
        return total


class FiniteOrZeroAscend(nn.Cell):
    """x * scale, and zero where x is not finite. Inputs: x float32 of any shape, scale at most 1. Outputs: as x."""

    def construct(self, x, scale):
        return mint.nan_to_num(x, 0.0, 0.0, 0.0) * scale


class AdamWAscend(AdamWByTensor):
    """One kernel a tensor."""

    finite_or_zero = FiniteOrZeroAscend


KERNELS = Kernels(
    embedding=EmbeddingAscend,
    linear=LinearAscend,
    rms_norm=RMSNormAscend,
    residual_norm=ResidualNormAscend,
    swiglu=SwiGLUAscend,
    causal_attention=CausalAttentionAscend,
    head_loss=HeadLossAscend,
    square_sum=SquareSumAscend,
    adamw=AdamWAscend,
)
