"""Ascend's fused operators behind the same interfaces as the CPU's formulas in cpu.py.

No backward pass is by hand: semi-automatic parallelism cuts a `construct` over devices, not a `bprop`. Every operator
that a layout may cut is an attribute, and mindmodel/parallel/plans names it; only casts and reshapes follow by
themselves.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import mint, nn, ops
from mindspore.ops.auto_generate import Dot, RmsNorm, RotaryPositionEmbedding, SplitWithSize, SumExt, Swiglu
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from mindmodel.layers.kernels import Kernels
from mindmodel.layers.shared import AdamWByTensor, EmbeddingByGather, SquareSumsByTensor

COMPRESSED_MASK_SIZE = 2048  # sparse_mode 2 takes one causal mask of this size for every sequence length


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

    Inputs: x [..., D], weight float32 [D]. Outputs: as x.
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
        self.swiglu, self.flat = Swiglu(), ops.Reshape()

    def construct(self, x):
        pairs = x.reshape((x.shape[0], self.num_blocks, 2, -1))
        return self.flat(self.swiglu(pairs, 2), (x.shape[0], -1))


class CausalAttentionAscend(nn.Cell):
    """Causal flash attention with rotary embedding; never builds the S x S matrix.

    `kv_copies`, set by a plan: into how many groups the query heads of a KV head fall, each with a copy of it, so that
    there is one for every device.

    Inputs: x [B S, (H + 2 K) d]; q_norm and k_norm: Cells over [N, d], or None. Outputs: [B S, H d].
    """

    def __init__(self, num_heads, num_kv_heads, head_size, cos: np.ndarray, sin: np.ndarray):
        super().__init__()
        self.kv_copies = 1
        self.seq_len, self.head_size = cos.shape[0], head_size
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.group_size = num_heads // num_kv_heads
        self.cos, self.sin = (Tensor(table.reshape(1, -1, 1, head_size)) for table in (cos, sin))
        self.mask = Tensor(np.triu(np.ones((COMPRESSED_MASK_SIZE, COMPRESSED_MASK_SIZE), np.uint8), 1))
        self.split = SplitWithSize()  # mint.split makes strided views
        self.k_repeat, self.v_repeat = ops.Tile(), ops.Tile()
        self.q_rope, self.k_rope = RotaryPositionEmbedding(), RotaryPositionEmbedding()
        self.flash_attention = FlashAttentionScore(
            num_heads, scale_value=head_size**-0.5, next_tokens=0, input_layout="BSH", sparse_mode=2
        )

    def construct(self, x, q_norm, k_norm):
        seq_len, size = self.seq_len, self.head_size
        heads = x.reshape((-1, seq_len, self.num_kv_heads, self.group_size + 2, size))
        q, k, v = self.split(heads, (self.group_size, 1, 1), 3)
        num_kv_heads, times = self.num_kv_heads * self.kv_copies, (1, 1, 1, self.kv_copies, 1)
        if self.kv_copies > 1:
            k, v = self.k_repeat(k, times), self.v_repeat(v, times)
        q = q.reshape((-1, seq_len, self.num_heads, size))
        k = k.reshape((-1, seq_len, num_kv_heads, size))
        if q_norm is not None:
            q, k = q_norm(q), k_norm(k)
        # What waits for an input is no constant; those are copied for every use where micro-batches share a graph.
        cos, sin = ops.depend(ops.cast(self.cos, x.dtype), x), ops.depend(ops.cast(self.sin, x.dtype), x)
        mask = ops.depend(self.mask, x)
        q, k = self.q_rope(q, cos, sin, 0), self.k_rope(k, cos, sin, 0)
        q = q.reshape((-1, seq_len, self.num_heads * size))
        k = k.reshape((-1, seq_len, num_kv_heads * size))
        v = v.reshape((-1, seq_len, num_kv_heads * size))
        attended = self.flash_attention(q, k, v, None, None, None, mask, None, None, None)[3]
        return attended.reshape((-1, self.num_heads * size))


class LogitsAscend(nn.Cell):
    """The rows of numbers that the loss needs of the logits.

    Inputs: hidden [T, D], weight float32 [V, D], labels int32 [T].
    Outputs: log of the softmax denominator, logit of the label (0 where that is none); both float32 [T, 1].
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.on, self.off = Tensor(1.0, mstype.float32), Tensor(0.0, mstype.float32)
        self.linear = LinearAscend()
        self.largest = ops.ReduceMax(keep_dims=True)
        self.one_hot = ops.OneHot()

    def construct(self, hidden, weight, labels):
        logits = ops.cast(self.linear(hidden, weight), mstype.float32)
        largest = ops.stop_gradient(self.largest(logits, (1,)))
        log_sum = ops.log(mint.sum(ops.exp(logits - largest), 1, True)) + largest
        picked = mint.sum(logits * self.one_hot(labels, self.vocab_size, self.on, self.off), 1, True)
        return log_sum, picked


class HeadLossAscend(nn.Cell):
    """Output layer, and loss in float32, summed over the rows whose label is not negative.

    Inputs: hidden [T, D], weight float32 [V, D], labels int32 [T].
    Outputs: cross entropy + z_loss * squared log-denominator, cross entropy.
    """

    def __init__(self, vocab_size: int, z_loss: float, gradient: bool):
        super().__init__()
        self.z_loss = z_loss
        self.logits = LogitsAscend(vocab_size)
        self.counts, self.row_loss, self.keep, self.total = ops.GreaterEqual(), ops.Sub(), ops.Mul(), SumExt()
        self.square, self.keep_square, self.total_square = ops.Mul(), ops.Mul(), SumExt()

    def construct(self, hidden, weight, labels):
        log_sum, picked = self.logits(hidden, weight, labels)
        keep = ops.cast(self.counts(labels.reshape((-1, 1)), 0), mstype.float32)
        entropy = self.total(self.keep(self.row_loss(log_sum, picked), keep), (0, 1), False)
        if self.z_loss == 0.0:
            return entropy, entropy
        square = self.keep_square(self.square(log_sum, log_sum), keep)
        return entropy + self.z_loss * self.total_square(square, (0, 1), False), entropy


class SquareSumAscend(nn.Cell):
    """Sum of all squares, by one kernel a tensor. Inputs: tuple of float32 tensors. Outputs: scalar."""

    def __init__(self):
        super().__init__()
        self.dot = Dot()

    def construct(self, tensors):
        total = Tensor(0.0, mstype.float32)
        for tensor in tensors:
            flat = tensor.reshape((-1,))
            total = total + self.dot(flat, flat)
        return total


class SquareSumsAscend(SquareSumsByTensor):
    """A kernel each."""

    square_sum = SquareSumAscend


class FiniteOrZeroAscend(nn.Cell):
    """x * scale, and zero where x is not finite. Inputs: x float32 of any shape, scale at most 1. Outputs: as x."""

    def construct(self, x, scale):
        return mint.nan_to_num(x, 0.0, 0.0, 0.0) * scale


class AdamWAscend(AdamWByTensor):
    """One kernel a tensor."""

    finite_or_zero, square_sums = FiniteOrZeroAscend, SquareSumsAscend


KERNELS = Kernels(
    embedding=EmbeddingByGather,
    linear=LinearAscend,
    rms_norm=RMSNormAscend,
    residual_norm=ResidualNormAscend,
    swiglu=SwiGLUAscend,
    causal_attention=CausalAttentionAscend,
    head_loss=HeadLossAscend,
    square_sum=SquareSumAscend,
    square_sums=SquareSumsAscend,
    adamw=AdamWAscend,
)
