"""The decoding step as one C++ kernel; prompts take the graph."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import dtype as mstype
from mindspore import nn

from mindmodel.generation.decode import CachedBlock, CachedDecoder
from mindmodel.layers.native.cells import in_place, kernel
from mindmodel.layers.rope import rope_tables
from mindmodel.recipe.schema import ModelSection


def layer_arrays(block: CachedBlock) -> tuple[Parameter, ...]:
    """What the kernel takes of a layer, in its order."""
    attention, mlp = block.attention, block.mlp
    weights = block.attention_norm, attention.qkv, attention.out, block.mlp_norm, mlp.gate_up, mlp.down
    norms = () if attention.q_norm is None else (attention.q_norm.weight, attention.k_norm.weight)
    return (*(cell.weight for cell in weights), attention.keys, attention.values, *norms)


class DecodeStepNative(nn.Cell):
    """A CachedDecoder's graph for one new token of each sequence, in one kernel. Interface: DecodeStep's.

    It has no Cells inside: at every call MindSpore goes through all of a Cell's, which takes longer than a small step.
    """

    def __init__(self, decoder: CachedDecoder, model: ModelSection, num_slots: int):
        super().__init__(auto_prefix=False)
        sizes = model.num_layers, model.num_heads, model.num_kv_heads, model.ffn_blocks
        self.sizes, self.eps = Tensor(np.array(sizes, np.int32)), Tensor([model.norm_eps], mstype.float32)
        cos, sin = rope_tables(model, num_slots)
        self.cos, self.sin = Tensor(cos), Tensor(sin)
        ends = decoder.embedding.weight, decoder.norm.weight, decoder.head.weight
        layers = [array for block in decoder.layers for array in layer_arrays(block)]
        self.parameters = ParameterTuple((*ends, *layers))
        step = kernel("decode_step", lambda ids, *rest: (ids[0], model.vocab_size), mstype.float32)
        written = (*[False] * 6, True, True, *[False] * (2 * model.qk_norm))  # of a layer: keys and values
        self.step = in_place(step, (*[False] * 9, *written * model.num_layers))

    def construct(self, ids, position):
        return self.step(ids, position, self.sizes, self.eps, self.cos, self.sin, *self.parameters)
