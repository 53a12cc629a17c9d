"""Causal self-attention with grouped key and value heads."""

from __future__ import annotations

import numpy as np
from mindspore import nn

from mindmodel.layers.kernels import device_kernels
from mindmodel.layers.linear import Linear
from mindmodel.layers.norm import RMSNorm
from mindmodel.recipe.schema import ModelSection


class Attention(nn.Cell):
    """Projection to heads, rotary causal attention, projection back.

    The fused weight's rows are grouped by KV head (its query heads, then its key, then its value), so that a split over
    tensor parallel ranks is a plain split of rows.

    Inputs: x [B S, hidden_size]. Outputs: [B S, hidden_size].
    Source: checked against transformers' `LlamaAttention` and `Qwen3Attention`.
    """

    def __init__(self, model: ModelSection, cos: np.ndarray, sin: np.ndarray):
        super().__init__()
        width = model.num_heads * model.head_size
        self.qkv = Linear(model.hidden_size, width + 2 * model.num_kv_heads * model.head_size)
        self.q_norm = RMSNorm(model.head_size, model.norm_eps) if model.qk_norm else None
        self.k_norm = RMSNorm(model.head_size, model.norm_eps) if model.qk_norm else None
        attention = device_kernels().causal_attention
        self.causal_attention = attention(model.num_heads, model.num_kv_heads, model.head_size, cos, sin)
        self.out = Linear(width, model.hidden_size)

    def construct(self, x):
        return self.out(self.causal_attention(self.qkv(x), self.q_norm, self.k_norm))
