"""Token embedding."""

from __future__ import annotations

from mindspore import Parameter
from mindspore import dtype as mstype
from mindspore import nn
from mindspore.common.initializer import initializer

from mindmodel.layers.kernels import device_kernels


class Embedding(nn.Cell):
    """Rows of the table, which is kept in float32.

    Inputs: ids int32 [T]. Outputs: [T, hidden_size] in `dtype`.
    """

    def __init__(self, vocab_size: int, hidden_size: int, dtype):
        super().__init__()
        self.weight = Parameter(initializer("zeros", (vocab_size, hidden_size), mstype.float32), name="weight")
        self.embedding = device_kernels().embedding(dtype)

    def construct(self, ids):
        return self.embedding(ids, self.weight)
