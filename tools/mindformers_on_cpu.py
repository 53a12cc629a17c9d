"""Replacements for the operators that MindFormers 1.9.0 needs and MindSpore 2.9.0 lacks on CPU.

RmsNorm, FlashAttentionScore, Outer, EmbeddingDenseBackward and NPUGetFloatStatusV2 have no CPU kernel; one of them
fails the whole compilation. `patch` puts other Cells in their place at run time, before a model is made. MindFormers
compiles a helper into its own folder when it is imported, so that folder must be writable.
"""

from __future__ import annotations

import math

from mindspore import dtype as mstype
from mindspore import nn, ops


class Attention(nn.Cell):
    """In place of FlashAttention. Inputs: query, key, value [S, B, H d], mask. Outputs: [S, B, H d]."""

    def __init__(self, config, layer_number, **kwargs):
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.kv_channels
        self.softmax = ops.Softmax(-1)

    def heads(self, x):
        """[S, B, H d] as [B, H, S, d]; they arrive in float16 whatever the compute dtype is."""
        x = ops.cast(x, mstype.float32)
        return x.reshape(x.shape[0], x.shape[1], -1, self.head_size).transpose(1, 2, 0, 3)

    def construct(self, query, key, value, attention_mask, *args, **kwargs):
        q, k, v = self.heads(query), self.heads(key), self.heads(value)
        if k.shape[1] != self.num_heads:
            k = ops.repeat_interleave(k, self.num_heads // k.shape[1], 1)
            v = ops.repeat_interleave(v, self.num_heads // v.shape[1], 1)
        scores = ops.matmul(q, k.transpose(0, 1, 3, 2)) / math.sqrt(self.head_size)
        scores = scores - ops.cast(attention_mask, scores.dtype) * 10000.0
        attended = ops.matmul(self.softmax(scores), v).transpose(2, 0, 1, 3)
        return attended.reshape(query.shape[0], query.shape[1], -1)


class Outer(nn.Cell):
    """Outer product of two vectors; annotations of the parallel layout mean nothing on one device."""

    def shard(self, *args, **kwargs):
        """Accepted as the operator's own."""
        return self

    def construct(self, a, b):
        return a.reshape(-1, 1) * b.reshape(1, -1)


def _embedding(self, ids, weight):
    rows = ops.gather(weight, ids.reshape(-1), 0)
    return rows.reshape(ids.shape[0], -1, weight.shape[1])


def _overflow(self, status, compute_output):
    return ops.logical_not(ops.isfinite(compute_output[0]).all())


def patch(qk_norm: bool) -> None:
    """Replace the operators; `qk_norm` false makes its Qwen3 a Llama."""
    from mindformers.models.qwen3 import modeling_qwen3_train as qwen3
    from mindformers.parallel_core.training_graph.base_models.common.embeddings import rotary_pos_embedding
    from mindformers.parallel_core.training_graph.base_models.gpt import gpt_layer_specs
    from mindformers.parallel_core.training_graph.tensor_parallel.layers import VocabParallelEmbedding
    from mindformers.parallel_core.training_graph.transformer import norm
    from mindformers.wrapper.wrapper import MFTrainOneStepCell

    norm.FusedRMSNorm = norm.RMSNorm
    gpt_layer_specs.FlashAttention = Attention
    rotary_pos_embedding.Outer = Outer
    VocabParallelEmbedding.embedding_func = _embedding
    MFTrainOneStepCell.get_overflow_status = _overflow
    specs = qwen3.get_gpt_layer_local_spec

    def layer_specs(**settings):
        return specs(**{**settings, "qk_layernorm": qk_norm})

    qwen3.get_gpt_layer_local_spec = layer_specs
