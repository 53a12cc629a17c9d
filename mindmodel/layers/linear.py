"""The matrix product with a weight."""

from __future__ import annotations

from mindspore import Parameter
from mindspore import dtype as mstype
from mindspore import nn
from mindspore.common.initializer import initializer

from mindmodel.layers.kernels import device_kernels


class Linear(nn.Cell):
    """x w', without bias; w is [outputs, inputs] as in Hugging Face's models, kept in float32, zero until it is filled.

    Inputs: x [T, inputs]. Outputs: [T, outputs] in x's dtype.
    """

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.weight = Parameter(initializer("zeros", (num_outputs, num_inputs), mstype.float32), name="weight")
        self.linear = device_kernels().linear()

    def construct(self, x):
        return self.linear(x, self.weight)
