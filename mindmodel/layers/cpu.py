"""The CPU's formulas: public operators, backward passes by hand.

MindSpore's automatic gradients of these recompute and materialise more. Activations are 2-D, since 3-D matmuls take a
slower kernel; sums over columns are matmuls with a row of ones, which are several times faster than a reduction.

In bfloat16 the norms, the softmax and the loss are float32 inside, as in Hugging Face's models. Such a graph compiles,
but does not run: MindSpore has no bfloat16 MatMul on CPU.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.rope import rotation_matrix

LARGEST_FLOAT = 3.4e38


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

    def construct(self, x, weight):
        x32 = ops.cast(x, mstype.float32)
        return ops.cast(x32 * self._inverse_rms(x32), x.dtype) * ops.cast(weight, x.dtype)

    def bprop(self, x, weight, out, dout):
        x32, dout = ops.cast(x, mstype.float32), ops.cast(dout, mstype.float32)
        inverse_rms = self._inverse_rms(x32)
        unit = x32 * inverse_rms
        scaled = dout * weight
        dx = (scaled - unit * (self.sum_rows(scaled * unit, (1,)) * self.inverse_size)) * inverse_rms
        dweight = self.matmul(ops.ones((1, x.shape[0]), mstype.float32), dout * unit).reshape((-1,))
        return ops.cast(dx, x.dtype), dweight


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
        return self.split(x.reshape((x.shape[0], self.num_blocks, 2, -1)))

    def construct(self, x):
        gate, up = self._gate_up(x)
        return (gate * ops.sigmoid(gate) * up).reshape((x.shape[0], -1))

    def bprop(self, x, out, dout):
        gate, up = self._gate_up(x)
        dout = dout.reshape(gate.shape)
        sigmoid = ops.sigmoid(gate)
        silu = gate * sigmoid
        dgate = dout * up * (sigmoid + silu - silu * sigmoid)
        return (self.concat((dgate, dout * silu)).reshape(x.shape),)


def split_heads(x, num_kv_heads, group_size, head_size, seq_len):
    """The fused projection's rows [B S, K (R + 2) d] as queries [B K, R S, d] and keys and values [B K, S, d]."""
    slots = group_size + 2
    heads = x.reshape((-1, seq_len, num_kv_heads, slots, head_size)).transpose((0, 2, 3, 1, 4))
    heads = heads.reshape((-1, slots * seq_len, head_size))
    num_groups, query_rows = heads.shape[0], group_size * seq_len
    q = ops.slice(heads, (0, 0, 0), (num_groups, query_rows, head_size))
    k = ops.slice(heads, (0, query_rows, 0), (num_groups, seq_len, head_size))
    return q, k, ops.slice(heads, (0, query_rows + seq_len, 0), (num_groups, seq_len, head_size))


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
        return split_heads(x, self.num_kv_heads, self.group_size, self.head_size, self.seq_len)

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
        turned = self.matmul(x.reshape((-1, x.shape[2])), ops.cast(self.rotation, x.dtype)).reshape(x.shape)
        return x * ops.cast(cos, x.dtype) + turned * ops.cast(sin, x.dtype)


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
        scores = ops.cast(self.scores(q, k), mstype.float32)
        probabilities = self.softmax(scores.reshape((-1, seq_len, seq_len)) + mask).reshape(scores.shape)
        probabilities = ops.cast(probabilities, v.dtype)
        return self.mix(probabilities, v), probabilities

    def bprop(self, q, k, v, mask, out, dout):
        attended, probabilities = out
        dattended = dout[0]
        products = ops.cast(dattended, mstype.float32) * ops.cast(attended, mstype.float32)
        row_sums = self.sum_rows(products.reshape((-1, q.shape[2])), (1,))
        dprobabilities = ops.cast(self.scores(dattended, v), mstype.float32).reshape((-1, k.shape[1]))
        dscores = ops.cast(probabilities, mstype.float32).reshape((-1, k.shape[1])) * (dprobabilities - row_sums)
        dscores = ops.cast(dscores, q.dtype).reshape(probabilities.shape)
        dq, dk = self.mix(dscores, k), self.mix_transposed(dscores, q)
        return dq, dk, self.mix_transposed(probabilities, dattended), ops.zeros_like(mask)


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
        q, k, v = self.split_heads(x)
        if q_norm is not None:
            q = q_norm(q.reshape((-1, q.shape[2]))).reshape(q.shape)
            k = k_norm(k.reshape((-1, k.shape[2]))).reshape(k.shape)
        q = self.rotate(q, self.q_cos, self.q_sin)
        k = self.rotate(k, self.k_cos, self.k_sin)
        attended = self.core(q, k, v, self.mask)[0]
        return attended.reshape(self.shape).transpose((0, 3, 1, 2, 4)).reshape((-1, self.width))


class CrossEntropyCPU(nn.Cell):
    """Cross entropy and squared log-denominator, summed over the rows whose label is not negative.

    The exponentials are those of the softmax kernels: `ops.exp` in a fused graph is off by up to 3e-4 and turns an
    infinity into a finite number.

    Inputs: logits [T, V], labels int32 [T]. Outputs: two float32 scalars and the log-denominators [T, 1].
    Source: z-loss as in PaLM (arXiv 2204.02311) section 5.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.columns = Tensor(np.arange(vocab_size, dtype=np.int32).reshape(1, -1))
        self.log_softmax = ops.LogSoftmax(-1)
        self.softmax = ops.Softmax(-1)
        self.sum = ops.ReduceSum()
        self.pick = ops.GatherD()

    def construct(self, logits, labels):
        labels, logits = labels.reshape((-1, 1)), ops.cast(logits, mstype.float32)
        keep = ops.cast(labels >= 0, mstype.float32)
        labels = ops.maximum(labels, 0)
        log_probability = self.pick(self.log_softmax(logits), 1, labels)
        log_sum = self.pick(logits, 1, labels) - log_probability
        return -self.sum(log_probability * keep), self.sum(log_sum * log_sum * keep), log_sum

    def bprop(self, logits, labels, out, dout):
        column = labels.reshape((-1, 1))
        keep = ops.cast(column >= 0, mstype.float32)
        row_scale = keep * (dout[0] + 2.0 * dout[1] * out[2])
        hit = ops.cast(self.columns == column, mstype.float32)
        dlogits = self.softmax(ops.cast(logits, mstype.float32)) * row_scale - hit * dout[0]
        return ops.cast(dlogits, logits.dtype), ops.zeros_like(labels)


class SquareSumCPU(nn.Cell):
    """Sum of the squares, as the product of a row with itself. Inputs: x float32 of any shape. Outputs: scalar."""

    def __init__(self):
        super().__init__()
        self.dot = ops.MatMul(transpose_b=True)

    def construct(self, x):
        row = x.reshape((1, -1))
        return self.dot(row, row).reshape(())


class FiniteOrZeroCPU(nn.Cell):
    """x * scale, and zero where that is not finite. Inputs: x float32 of any shape, scale a scalar. Outputs: as x."""

    def construct(self, x, scale):
        scaled = x * scale
        return ops.select(ops.abs(scaled) <= LARGEST_FLOAT, scaled, ops.zeros_like(scaled))
