"""Faults that a model can have, planted in one layer of a built decoder; the CPU's formulas, no other layer touched."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from mindmodel.layers.cpu import CausalAttentionCPU, ResidualNormCPU, SwiGLUCPU, in_float32, rounded


class HeadsOnTheWrongAxis(nn.Cell):
    """Key and value heads are repeated as tiles: query head h takes KV head h % K, not h // R."""

    def __init__(self, right: CausalAttentionCPU, model):
        super().__init__()
        self.right = right
        group = model.num_heads // model.num_kv_heads
        self.grouped = (-1, model.num_kv_heads, group, right.split_heads.seq_len, model.head_size)
        self.tiled = (-1, group, model.num_kv_heads, right.split_heads.seq_len, model.head_size)

    def construct(self, x, q_norm, k_norm):
        right, dtype = self.right, x.dtype
        q, k, v = right.split_heads(in_float32(x))
        q = q.reshape(self.tiled).transpose((0, 2, 1, 3, 4)).reshape(q.shape)
        q = ops.cast(right.rotate(q, right.q_cos, right.q_sin), dtype)
        k = ops.cast(right.rotate(k, right.k_cos, right.k_sin), dtype)
        attended = in_float32(right.core(q, k, ops.cast(v, dtype), right.mask)[0])
        attended = attended.reshape(self.grouped).transpose((0, 3, 2, 1, 4))
        return ops.cast(attended.reshape((-1, right.width)), dtype)


class UpThenGate(nn.Cell):
    """silu(up) * gate."""

    def __init__(self, right: SwiGLUCPU):
        super().__init__()
        self.right = right

    def construct(self, x):
        gate, up = self.right._gate_up(x)
        return ops.cast((up * ops.sigmoid(up) * gate).reshape((x.shape[0], -1)), x.dtype)


class NormWithoutFloat32(ResidualNormCPU):
    """Every operator's result is rounded to x's dtype, the sum's too."""

    def _normed(self, x, weight):
        x32 = in_float32(x)
        mean = rounded(self.sum_rows(rounded(x32 * x32, x), (1,)) * self.inverse_size, x)
        inverse = rounded(ops.rsqrt(rounded(mean + self.eps, x)), x)
        return ops.cast(rounded(x32 * inverse, x) * rounded(weight, x), x.dtype)


def wrong_rope_sign(layer, model):
    attention = layer.attention.causal_attention
    attention.q_sin, attention.k_sin = (Tensor(-table.asnumpy()) for table in (attention.q_sin, attention.k_sin))


def heads_on_the_wrong_axis(layer, model):
    layer.attention.causal_attention = HeadsOnTheWrongAxis(layer.attention.causal_attention, model)


def no_scale(layer, model):
    attention = layer.attention.causal_attention
    root = model.head_size**0.5
    attention.q_cos, attention.q_sin = (Tensor(root * table.asnumpy()) for table in (attention.q_cos, attention.q_sin))


def gate_and_up_swapped(layer, model):
    layer.mlp.swiglu = UpThenGate(layer.mlp.swiglu)


def norm_without_float32(layer, model):
    layer.mlp_norm.residual_norm = NormWithoutFloat32(model.hidden_size, model.norm_eps)


FAULTS = {
    "wrong rope sign": (wrong_rope_sign, "attention.causal_attention"),
    "KV heads on the wrong axis": (heads_on_the_wrong_axis, "attention.causal_attention"),
    "no attention scale": (no_scale, "attention.causal_attention"),
    "gate and up swapped": (gate_and_up_swapped, "mlp.swiglu"),
    "norm without float32": (norm_without_float32, "mlp_norm"),
}
"""How it is planted, and the place within the layer where it is to be found."""
