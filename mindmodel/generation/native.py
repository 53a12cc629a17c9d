"""The decoding step as one C++ kernel; prompts take the graph."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import dtype as mstype
from mindspore import nn
from mindspore.ops.signature import make_sig, sig_rw

from mindmodel.generation.decode import CachedBlock, CachedDecoder
from mindmodel.layers.native.cells import kernel
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
        self.step = kernel("decode_step", lambda ids, *rest: (ids[0], model.vocab_size), mstype.float32)
        written, read = make_sig("written", sig_rw.RW_WRITE), make_sig("read")
        # MindSpore must know what is written to, to order it with what is read
        signature = (*[read] * 6, written, written, *[read] * (2 * model.qk_norm))
        self.step.set_signatures((*[read] * 9, *signature * model.num_layers))
        self.step.add_prim_attr("side_effect_mem", True)

    def construct(self, ids, position):
        return self.step(ids, position, self.sizes, self.eps, self.cos, self.sin, *self.parameters)
