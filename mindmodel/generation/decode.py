"""Next-token logits from a graph of static shape, with the keys and values of earlier tokens kept in a cache."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.attention import Attention
from mindmodel.layers.rope import rope_tables, rotation_matrix
from mindmodel.models.decoder import Block, Decoder
from mindmodel.recipe.schema import ModelSection


class CachedAttention(nn.Cell):
    """An attention layer's weights over a cache of `num_slots` tokens a sequence.

    Inputs: x [B n, hidden_size] of n new tokens; cos and sin of their positions [n, 1, R + 2, d], see HeadTables; rows
    int32 [B K n], where in the cache their keys go; mask [n, num_slots], 0 where a new token may look and -1e9
    elsewhere.
    Outputs: [B n, hidden_size].
    """

    def __init__(self, attention: Attention, model: ModelSection, num_sequences: int, num_slots: int):
        super().__init__(auto_prefix=False)
        self.qkv, self.out = attention.qkv, attention.out
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.num_kv_heads, self.head_size = model.num_kv_heads, model.head_size
        self.group_size = model.num_heads // model.num_kv_heads
        self.num_slots = num_slots
        self.rotation = Tensor(rotation_matrix(model.head_size))
        rows = num_sequences * model.num_kv_heads * num_slots
        self.keys = Parameter(Tensor(np.zeros((rows, model.head_size), np.float32)), requires_grad=False)
        self.values = Parameter(Tensor(np.zeros((rows, model.head_size), np.float32)), requires_grad=False)
        self.update = ops.ScatterUpdate()
        self.turn = ops.MatMul()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.concat = ops.Concat(axis=1)

    def construct(self, x, cos, sin, rows, mask):
        num_new, size = cos.shape[0], self.head_size
        q, k, v = self.heads(self.qkv(x), cos, sin)
        cached = (-1, self.num_slots, size)
        keys = self.update(self.keys, rows, k.reshape((-1, size))).reshape(cached)
        values = self.update(self.values, rows, v.reshape((-1, size))).reshape(cached)
        scores = self.scores(q, keys)
        probabilities = self.softmax(scores.reshape((-1, num_new, self.num_slots)) + mask).reshape(scores.shape)
        attended = self.mix(probabilities, values)
        if num_new > 1:
            attended = attended.reshape((-1, self.num_kv_heads, self.group_size, num_new, size))
            attended = attended.transpose((0, 3, 1, 2, 4))
        return self.out(attended.reshape((x.shape[0], -1)))

    def heads(self, x, cos, sin):
        """Rows of the fused projection as queries [B K, R n, d], rotated and scaled, and rotated keys, and values."""
        num_new, size, query_slots = cos.shape[0], self.head_size, self.group_size
        slots = query_slots + 2
        if self.q_norm is not None:
            x = self.normed(x.reshape((-1, slots, size)))
        turned = self.turn(x.reshape((-1, size)), self.rotation)
        shape = (-1, num_new, self.num_kv_heads, slots, size)
        x = x.reshape(shape) * cos + turned.reshape(shape) * sin
        if num_new > 1:
            x = x.transpose((0, 2, 3, 1, 4))
        x = x.reshape((-1, slots * num_new, size))
        num_groups, query_rows = x.shape[0], query_slots * num_new
        q = ops.slice(x, (0, 0, 0), (num_groups, query_rows, size))
        k = ops.slice(x, (0, query_rows, 0), (num_groups, num_new, size))
        return q, k, ops.slice(x, (0, query_rows + num_new, 0), (num_groups, num_new, size))

    def normed(self, x):
        """Normalised query and key slots of x [N, R + 2, d], and its value slot."""
        count, query_slots, size = x.shape[0], self.group_size, self.head_size
        q = ops.slice(x, (0, 0, 0), (count, query_slots, size)).reshape((-1, size))
        k = ops.slice(x, (0, query_slots, 0), (count, 1, size)).reshape((-1, size))
        v = ops.slice(x, (0, query_slots + 1, 0), (count, 1, size))
        return self.concat((self.q_norm(q).reshape((count, query_slots, size)), self.k_norm(k).reshape(v.shape), v))


class HeadTables(nn.Cell):
    """Cosines and sines that turn all heads of a group at once: queries, scaled for the scores, the key; not the value.

    Inputs: positions int32 [n]. Outputs: cos and sin [n, 1, R + 2, d].
    """

    def __init__(self, model: ModelSection, num_slots: int):
        super().__init__(auto_prefix=False)
        cos, sin = rope_tables(model, num_slots)
        factors = np.ones((1, model.num_heads // model.num_kv_heads + 2, 1), np.float32)
        factors[:, :-2], factors[:, -1] = model.head_size**-0.5, 0
        still = np.zeros_like(factors)
        still[:, -1] = 1
        self.cos, self.sin = Tensor(cos[:, None] * factors + still), Tensor(sin[:, None] * factors)
        self.gather = ops.Gather()

    def construct(self, positions):
        cos, sin = self.gather(self.cos, positions, 0), self.gather(self.sin, positions, 0)
        shape = (-1, 1, cos.shape[1], cos.shape[2])
        return cos.reshape(shape), sin.reshape(shape)


class CachedBlock(nn.Cell):
    """A decoder block over a cache. Inputs and outputs as CachedAttention's."""

    def __init__(self, block: Block, model: ModelSection, num_sequences: int, num_slots: int):
        super().__init__(auto_prefix=False)
        self.attention_norm, self.mlp_norm, self.mlp = block.attention_norm, block.mlp_norm, block.mlp
        self.attention = CachedAttention(block.attention, model, num_sequences, num_slots)

    def construct(self, x, cos, sin, rows, mask):
        x, branch = self.attention_norm(x)
        x = x + self.attention(branch, cos, sin, rows, mask)
        x, branch = self.mlp_norm(x)
        return x + self.mlp(branch)


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
        self.tables = HeadTables(model, num_slots)
        groups = np.arange(num_sequences * model.num_kv_heads, dtype=np.int32)
        self.group_rows = Tensor(groups[:, None] * np.int32(num_slots))
        self.slots = Tensor(np.arange(num_slots, dtype=np.int32)[None, :])
        self.gather = ops.Gather()

    def construct(self, ids, positions, last):
        cos, sin = self.tables(positions)
        rows = (self.group_rows + positions.reshape((1, -1))).reshape((-1,))
        mask = ops.cast(self.slots > positions.reshape((-1, 1)), mstype.float32) * -1e9
        x = self.gather(self.embedding.weight, ids.reshape((-1,)), 0)
        for layer in self.layers:
            x = layer(x, cos, sin, rows, mask)
        return self.head(self.norm(self.gather(x, last, 0)))


class DecodeStep(nn.Cell):
    """A CachedDecoder's graph for one new token of each sequence.

    Inputs: ids int32 [B]; position int32 [1], the same for all sequences. Outputs: logits [B, vocab_size].
    """

    def __init__(self, decoder: CachedDecoder, num_sequences: int):
        super().__init__(auto_prefix=False)
        self.decoder = decoder
        self.last = Tensor(np.arange(num_sequences, dtype=np.int32))

    def construct(self, ids, position):
        return self.decoder(ids.reshape((-1, 1)), position, self.last)
