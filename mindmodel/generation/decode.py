"""Next-token logits from a graph of static shape, with the keys and values of earlier tokens kept in a cache."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.attention import Attention
from mindmodel.layers.cpu import RotateCPU, split_heads
from mindmodel.layers.rope import rope_tables
from mindmodel.models.decoder import Block, Decoder
from mindmodel.recipe.schema import ModelSection


class CachedAttention(nn.Cell):
    """An attention layer's weights over a cache of `num_slots` tokens a sequence.

    Inputs: x [B n, hidden_size] of n new tokens; cos and sin of their positions [n, d]; rows int32 [B K n], where in
    the cache their keys go; mask [n, num_slots], 0 where a new token may look and -1e9 elsewhere.
    Outputs: [B n, hidden_size].
    """

    def __init__(self, attention: Attention, model: ModelSection, num_sequences: int, num_slots: int):
        super().__init__(auto_prefix=False)
        self.qkv, self.out = attention.qkv, attention.out
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.heads = model.num_heads, model.num_kv_heads, model.head_size
        self.num_slots = num_slots
        self.rotate = RotateCPU(model.head_size)
        rows = num_sequences * model.num_kv_heads * num_slots
        self.keys = Parameter(Tensor(np.zeros((rows, model.head_size), np.float32)), requires_grad=False)
        self.values = Parameter(Tensor(np.zeros((rows, model.head_size), np.float32)), requires_grad=False)
        self.update = ops.ScatterUpdate()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def construct(self, x, cos, sin, rows, mask):
        num_heads, num_kv_heads, size = self.heads
        num_new, group_size = cos.shape[0], num_heads // num_kv_heads
        q, k, v = split_heads(self.qkv(x), num_kv_heads, group_size, size, num_new)
        if self.q_norm is not None:
            q = self.q_norm(q.reshape((-1, size))).reshape(q.shape)
            k = self.k_norm(k.reshape((-1, size))).reshape(k.shape)
        q = self.rotate(q.reshape((-1, num_new, size)), cos, sin).reshape(q.shape) * size**-0.5
        k = self.rotate(k, cos, sin)
        cached = (-1, self.num_slots, size)
        keys = self.update(self.keys, rows, k.reshape((-1, size))).reshape(cached)
        values = self.update(self.values, rows, v.reshape((-1, size))).reshape(cached)
        scores = self.scores(q, keys)
        probabilities = self.softmax(scores.reshape((-1, num_new, self.num_slots)) + mask).reshape(scores.shape)
        attended = self.mix(probabilities, values).reshape((-1, num_kv_heads, group_size, num_new, size))
        return self.out(attended.transpose((0, 3, 1, 2, 4)).reshape((-1, num_heads * size)))


class CachedBlock(nn.Cell):
    """A decoder block over a cache. Inputs and outputs as CachedAttention's."""

    def __init__(self, block: Block, model: ModelSection, num_sequences: int, num_slots: int):
        super().__init__(auto_prefix=False)
        self.attention_norm, self.mlp_norm, self.mlp = block.attention_norm, block.mlp_norm, block.mlp
        self.attention = CachedAttention(block.attention, model, num_sequences, num_slots)

    def construct(self, x, cos, sin, rows, mask):
        x = x + self.attention(self.attention_norm(x), cos, sin, rows, mask)
        return x + self.mlp(self.mlp_norm(x))


class CachedDecoder(nn.Cell):
    """A decoder's weights behind a graph that takes n new tokens of each sequence and keeps their keys and values.

    Args:
        decoder: its weights are shared.
        num_sequences: B, sequences decoded together.
        num_slots: longest sequence in tokens, prompt and answer.

    Inputs: ids int32 [B, n]; positions int32 [n], the same for all sequences; last int32 [B], the row of B n whose
    logits are wanted. Outputs: logits [B, vocab_size].
    """

    def __init__(self, decoder: Decoder, model: ModelSection, num_sequences: int, num_slots: int):
        super().__init__(auto_prefix=False)
        self.embedding, self.norm, self.head = decoder.embedding, decoder.norm, decoder.head
        self.layers = nn.CellList([CachedBlock(b, model, num_sequences, num_slots) for b in decoder.layers])
        for i, block in enumerate(self.layers):
            block.attention.keys.name, block.attention.values.name = f"cache.{i}.keys", f"cache.{i}.values"
        cos, sin = rope_tables(model, num_slots)
        self.cos, self.sin = Tensor(cos), Tensor(sin)
        groups = np.arange(num_sequences * model.num_kv_heads, dtype=np.int32)
        self.group_rows = Tensor(groups[:, None] * np.int32(num_slots))
        self.slots = Tensor(np.arange(num_slots, dtype=np.int32)[None, :])
        self.gather = ops.Gather()

    def construct(self, ids, positions, last):
        cos, sin = self.gather(self.cos, positions, 0), self.gather(self.sin, positions, 0)
        rows = (self.group_rows + positions.reshape((1, -1))).reshape((-1,))
        hidden_slot = ops.cast(self.slots > positions.reshape((-1, 1)), mstype.float32)
        x = self.embedding(ids.reshape((-1,)))
        for layer in self.layers:
            x = layer(x, cos, sin, rows, hidden_slot * -1e9)
        return self.head(self.norm(self.gather(x, last, 0)))
