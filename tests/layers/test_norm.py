"""The norm in bfloat16 against transformers': float32 inside, rounded before the weight multiplies it."""

from __future__ import annotations

import numpy as np
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def test_in_bfloat16_it_equals_transformers_to_the_bit(without_fusion, compiling):
    from mindspore import Tensor
    from mindspore import dtype as mstype
    from mindspore import nn, ops

    from mindmodel.layers.norm import RMSNorm

    random = np.random.RandomState(0)
    x = torch.from_numpy(3 * random.standard_normal((33, 129)).astype(np.float32)).bfloat16()
    weight = torch.from_numpy(1 + 0.3 * random.standard_normal(129).astype(np.float32))
    peer = LlamaRMSNorm(129, 1e-5)
    peer.weight.data = weight.bfloat16()
    norm = RMSNorm(129, 1e-5)
    norm.weight.set_data(Tensor(weight.numpy()))

    class Run(nn.Cell):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def construct(self, x):
            return ops.cast(self.norm(ops.cast(x, mstype.bfloat16)), mstype.float32)

    with compiling():
        found = Run()(Tensor(x.float().numpy())).asnumpy()
    np.testing.assert_array_equal(found, peer(x).float().detach().numpy())
