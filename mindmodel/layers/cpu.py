"""The CPU's formulas: public operators, backward passes by hand.

MindSpore's automatic gradients of these recompute and materialise more. Activations are 2-D, since 3-D matmuls take a
slower kernel; sums over columns are matmuls with a row of ones, which are several times faster than a reduction.

In bfloat16 an operand of a matmul is rounded, products are summed in float32 and the result is rounded, as a matrix
unit does it. MindSpore's CPU has next to no bfloat16 operators, not even Reshape: between layers activations are
bfloat16, inside of a layer they are float32, and an operator's result is rounded where an NPU's would be.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.kernels import Kernels
from mindmodel.layers.rope import rotation_matrix
from mindmodel.layers.shared import AdamWByTensor, EmbeddingByGather, SquareSumsByTensor

LARGEST_FLOAT = 3.4e38
LOGITS_BYTES = 128 * 2**20
"""Of the logits that the loss holds at once, in float32."""


def in_float32(x):
    """x as operators on CPU take it."""
    return ops.cast(x, mstype.float32)


def rounded(x, like):
    """float32 with the precision of `like`."""
    return in_float32(ops.cast(x, like.dtype))


class LinearCPU(nn.Cell):
    """x w'. Inputs: x [T, inputs], weight float32 [outputs, inputs]. Outputs: [T, outputs] in x's dtype."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x, weight):
        return ops.cast(self.matmul(in_float32(x), rounded(weight, x)), x.dtype)


class RMSNormCPU(nn.Cell):
    """x / rms(x) * weight.

    Inputs: x [T, D], weight [D]. Outputs: [T, D].
    Source: Zhang and Sennrich (arXiv 1910.07467) eq. 4.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.inverse_size = 1.0 / size
        self.sum_rows = ops.ReduceSum(keep_dims=True)
        self.matmul = ops.MatMul()

    def _inverse_rms(self, x):
        return ops.rsqrt(self.sum_rows(x * x, (1,)) * self.inverse_size + self.eps)

    def _normed(self, x, weight):
        x32 = in_float32(x)
        return ops.cast(rounded(x32 * self._inverse_rms(x32), x) * rounded(weight, x), x.dtype)

    def _gradients(self, x, weight, dout):
        """By x and weight, in float32."""
        x32, dout = in_float32(x), in_float32(dout)
        inverse_rms = self._inverse_rms(x32)
        unit = x32 * inverse_rms
        scaled = dout * weight
        dx = (scaled - unit * (self.sum_rows(scaled * unit, (1,)) * self.inverse_size)) * inverse_rms
        dweight = self.matmul(ops.ones((1, x.shape[0]), mstype.float32), dout * unit).reshape((-1,))
        return dx, dweight

    def construct(self, x, weight):
        return self._normed(x, weight)

    def bprop(self, x, weight, out, dout):
        dx, dweight = self._gradients(x, weight, dout)
        return ops.cast(dx, x.dtype), dweight


class ResidualNormCPU(RMSNormCPU):
    """x, and x / rms(x) * weight. Inputs: as RMSNormCPU's. Outputs: twice [T, D]."""

    def construct(self, x, weight):
        return x, self._normed(x, weight)

    def bprop(self, x, weight, out, dout):
        dx, dweight = self._gradients(x, weight, dout[1])
        return ops.cast(dx + in_float32(dout[0]), x.dtype), dweight


class SwiGLUCPU(nn.Cell):
    """silu(gate) * up, gate and up being alternating blocks of a row.

    Inputs: x [T, 2 F] in `num_blocks` pairs of (gate, up). Outputs: [T, F].
    Source: Shazeer (arXiv 2002.05202) eq. 6.
    """

    def __init__(self, num_blocks: int):
        super().__init__()
        self.num_blocks = num_blocks
        self.split = ops.Split(axis=2, output_num=2)
        self.concat = ops.Concat(axis=2)

    def _gate_up(self, x):
        return self.split(in_float32(x).reshape((x.shape[0], self.num_blocks, 2, -1)))

    def construct(self, x):
        gate, up = self._gate_up(x)
        return ops.cast((gate * ops.sigmoid(gate) * up).reshape((x.shape[0], -1)), x.dtype)

    def bprop(self, x, out, dout):
        gate, up = self._gate_up(x)
        dout = in_float32(dout).reshape(gate.shape)
        sigmoid = ops.sigmoid(gate)
        silu = gate * sigmoid
        dgate = dout * up * (sigmoid + silu - silu * sigmoid)
        return (ops.cast(self.concat((dgate, dout * silu)).reshape(x.shape), x.dtype),)


class SplitHeadsCPU(nn.Cell):
    """The fused projection's rows as queries, keys and values per KV head.

    Inputs: x [B S, K (R + 2) d], K KV heads with R query heads each.
    Outputs: q [B K, R S, d], k and v [B K, S, d].
    """

    def __init__(self, num_heads: int, num_kv_heads: int, head_size: int, seq_len: int):
        super().__init__()
        self.num_kv_heads, self.group_size = num_kv_heads, num_heads // num_kv_heads
        self.head_size, self.seq_len = head_size, seq_len
        self.concat = ops.Concat(axis=1)

    def construct(self, x):
        slots, seq_len, size = self.group_size + 2, self.seq_len, self.head_size
        heads = x.reshape((-1, seq_len, self.num_kv_heads, slots, size)).transpose((0, 2, 3, 1, 4))
        heads = heads.reshape((-1, slots * seq_len, size))
        num_groups, query_rows = heads.shape[0], self.group_size * seq_len
        q = ops.slice(heads, (0, 0, 0), (num_groups, query_rows, size))
        k = ops.slice(heads, (0, query_rows, 0), (num_groups, seq_len, size))
        return q, k, ops.slice(heads, (0, query_rows + seq_len, 0), (num_groups, seq_len, size))

    def bprop(self, x, out, dout):
        heads = self.concat((dout[0], dout[1], dout[2]))
        heads = heads.reshape((-1, self.num_kv_heads, self.group_size + 2, self.seq_len, self.head_size))
        return (heads.transpose((0, 3, 1, 2, 4)).reshape(x.shape),)


class RotateCPU(nn.Cell):
    """Rotary embedding; the rotation of halves is a matmul with a small constant matrix.

    Inputs: x [N, M, d], cos and sin [M, d]. Outputs: [N, M, d].
    """

    def __init__(self, head_size: int):
        super().__init__()
        self.rotation = Tensor(rotation_matrix(head_size))
        self.matmul = ops.MatMul()

    def construct(self, x, cos, sin):
        turned = self.matmul(x.reshape((-1, x.shape[2])), self.rotation).reshape(x.shape)
        return x * cos + turned * sin


class AttentionCoreCPU(nn.Cell):
    """softmax(q k' + mask) v for scaled q; the probabilities are kept for the backward pass.

    Inputs: q [N, R S, d], k and v [N, S, d], mask [S, S]. Outputs: [N, R S, d] and the probabilities [N, R S, S].
    Source: the row sums of dO * O in the backward pass are FlashAttention's (arXiv 2205.14135) eq. 4.
    """

    def __init__(self):
        super().__init__()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.mix_transposed = ops.BatchMatMul(transpose_a=True)
        self.softmax = ops.Softmax(-1)
        self.sum_rows = ops.ReduceSum(keep_dims=True)

    def construct(self, q, k, v, mask):
        seq_len = k.shape[1]
        scores = self.scores(in_float32(q), in_float32(k))
        probabilities = self.softmax(scores.reshape((-1, seq_len, seq_len)) + mask).reshape(scores.shape)
        probabilities = ops.cast(probabilities, v.dtype)
        return ops.cast(self.mix(in_float32(probabilities), in_float32(v)), v.dtype), probabilities

    def bprop(self, q, k, v, mask, out, dout):
        dtype, q32, k32, v32, probabilities = q.dtype, in_float32(q), in_float32(k), in_float32(v), in_float32(out[1])
        dattended = in_float32(dout[0])
        row_sums = self.sum_rows((dattended * in_float32(out[0])).reshape((-1, q.shape[2])), (1,))
        dprobabilities = self.scores(dattended, v32).reshape((-1, k.shape[1]))
        dscores = probabilities.reshape((-1, k.shape[1])) * (dprobabilities - row_sums)
        dscores = rounded(dscores.reshape(probabilities.shape), q)
        dq, dk = self.mix(dscores, k32), self.mix_transposed(dscores, q32)
        dv = self.mix_transposed(probabilities, dattended)
        return ops.cast(dq, dtype), ops.cast(dk, dtype), ops.cast(dv, dtype), ops.zeros_like(mask)


class CausalAttentionCPU(nn.Cell):
    """Causal attention with rotary embedding over rows of the fused projection.

    Inputs: x [B S, (H + 2 K) d]; q_norm and k_norm: Cells over [N, d], or None. Outputs: [B S, H d].
    """

    def __init__(self, num_heads, num_kv_heads, head_size, cos: np.ndarray, sin: np.ndarray):
        super().__init__()
        seq_len, group_size, scale = cos.shape[0], num_heads // num_kv_heads, head_size**-0.5
        self.split_heads = SplitHeadsCPU(num_heads, num_kv_heads, head_size, seq_len)
        self.rotate = RotateCPU(head_size)
        self.core = AttentionCoreCPU()
        self.shape = (-1, num_kv_heads, group_size, seq_len, head_size)
        self.width = num_heads * head_size
        self.q_cos, self.q_sin = (Tensor(np.tile(table * np.float32(scale), (group_size, 1))) for table in (cos, sin))
        self.k_cos, self.k_sin = Tensor(cos), Tensor(sin)
        self.mask = Tensor(np.triu(np.full((seq_len, seq_len), -1e9, np.float32), 1))

    def construct(self, x, q_norm, k_norm):
        dtype = x.dtype
        q, k, v = self.split_heads(in_float32(x))
        if q_norm is not None:
            q = in_float32(q_norm(ops.cast(q.reshape((-1, q.shape[2])), dtype))).reshape(q.shape)
            k = in_float32(k_norm(ops.cast(k.reshape((-1, k.shape[2])), dtype))).reshape(k.shape)
        q = ops.cast(self.rotate(q, self.q_cos, self.q_sin), dtype)
        k = ops.cast(self.rotate(k, self.k_cos, self.k_sin), dtype)
        attended = in_float32(self.core(q, k, ops.cast(v, dtype), self.mask)[0])
        rows = attended.reshape(self.shape).transpose((0, 3, 1, 2, 4)).reshape((-1, self.width))
        return ops.cast(rows, dtype)


class HeadLossCPU(nn.Cell):
    """Output layer and loss, summed over the rows whose label is not negative.

    Rows are taken a chunk at a time and a chunk's gradients are made while its logits are there: all logits never
    stand side by side. The backward pass only scales them.

    The exponentials are those of the softmax kernels: `ops.exp` in a fused graph is off by up to 3e-4 and turns an
    infinity into a finite number.

    Inputs: hidden [T, D], weight float32 [V, D], labels int32 [T].
    Outputs: cross entropy + z_loss * squared log-denominator, cross entropy, gradients of the first by hidden and
    weight (absent without `gradient`, for evaluation).
    Source: z-loss as in PaLM (arXiv 2204.02311) section 5.
    """

    def __init__(self, vocab_size: int, z_loss: float, gradient: bool):
        super().__init__()
        self.z_loss, self.gradient = z_loss, gradient
        self.rows = max(1, LOGITS_BYTES // (4 * vocab_size))
        self.columns = Tensor(np.arange(vocab_size, dtype=np.int32).reshape(1, -1))
        self.log_softmax = ops.LogSoftmax(-1)
        self.softmax = ops.Softmax(-1)
        self.dot = ops.MatMul(transpose_a=True)
        self.pick = ops.GatherD()
        self.logits_matmul = ops.MatMul(transpose_b=True)
        self.hidden_matmul = ops.MatMul()
        self.weight_matmul = ops.MatMul(transpose_a=True)

    def construct(self, hidden, weight, labels):
        num_rows, width = hidden.shape
        hidden32, weight32 = in_float32(hidden), rounded(weight, hidden)
        total, entropy, dhidden, dweight = Tensor(0.0, mstype.float32), Tensor(0.0, mstype.float32), (), None
        for begin in range(0, num_rows, self.rows):
            size = min(self.rows, num_rows - begin)
            if begin > 0:
                hidden32 = ops.depend(hidden32, dhidden if self.gradient else entropy)  # one chunk after another
            rows = ops.slice(hidden32, (begin, 0), (size, width)) if size < num_rows else hidden32
            column = ops.slice(labels, (begin,), (size,)).reshape((-1, 1))
            logits = rounded(self.logits_matmul(rows, weight32), hidden)
            chunk_entropy, squares, log_sum = self.sums(logits, column)
            total, entropy = total + chunk_entropy + self.z_loss * squares, entropy + chunk_entropy
            if self.gradient:
                dlogits = rounded(self.dlogits(logits, column, log_sum), hidden)
                dhidden = dhidden + (self.hidden_matmul(dlogits, weight32),)
                part = self.weight_matmul(dlogits, rows)
                dweight = part if dweight is None else dweight + part
        if not self.gradient:
            return total, entropy
        dhidden = ops.concat(dhidden) if len(dhidden) > 1 else dhidden[0]
        return total, entropy, dhidden, rounded(dweight, hidden)

    def sums(self, logits, column):
        """Cross entropy and squared log-denominator over the rows that count; log-denominators [rows, 1]."""
        keep = in_float32(column >= 0)
        column = ops.maximum(column, 0)
        log_probability = self.pick(self.log_softmax(logits), 1, column)
        log_sum = self.pick(logits, 1, column) - log_probability
        entropy, squares = self.dot(log_probability, keep), self.dot(log_sum * log_sum, keep)
        return -entropy.reshape(()), squares.reshape(()), log_sum

    def dlogits(self, logits, column, log_sum):
        """Gradient of the sum to differentiate."""
        scale = in_float32(column >= 0)
        if self.z_loss != 0.0:
            scale = scale * (1.0 + 2.0 * self.z_loss * log_sum)
        return self.softmax(logits) * scale - in_float32(self.columns == column)

    def bprop(self, hidden, weight, labels, out, dout):
        return ops.cast(out[2] * dout[0], hidden.dtype), out[3] * dout[0], ops.zeros_like(labels)


class SquareSumCPU(nn.Cell):
    """Sum of all squares: products of rows with themselves. Inputs: tuple of tensors. Outputs: float32 scalar."""

    def __init__(self):
        super().__init__()
        self.dot = ops.MatMul(transpose_b=True)

    def construct(self, tensors):
        total = Tensor(0.0, mstype.float32)
        for tensor in tensors:
            row = in_float32(tensor).reshape((1, -1))
            total = total + self.dot(row, row).reshape(())
        return total


class SquareSumsCPU(SquareSumsByTensor):
    """A product each."""

    square_sum = SquareSumCPU


class FiniteOrZeroCPU(nn.Cell):
    """x * scale, and zero where that is not finite. Inputs: x float32 of any shape, scale a scalar. Outputs: as x."""

    def construct(self, x, scale):
        scaled = x * scale
        return ops.select(ops.abs(scaled) <= LARGEST_FLOAT, scaled, ops.zeros_like(scaled))


class AdamWCPU(AdamWByTensor):
    """One kernel a tensor."""

    finite_or_zero, square_sums = FiniteOrZeroCPU, SquareSumsCPU


KERNELS = Kernels(
    embedding=EmbeddingByGather,
    linear=LinearCPU,
    rms_norm=RMSNormCPU,
    residual_norm=ResidualNormCPU,
    swiglu=SwiGLUCPU,
    causal_attention=CausalAttentionCPU,
    head_loss=HeadLossCPU,
    square_sum=SquareSumCPU,
    square_sums=SquareSumsCPU,
    adamw=AdamWCPU,
)
