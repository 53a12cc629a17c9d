"""Weights in the compute dtype, and the matrix product with one."""

from __future__ import annotations

from mindspore import Parameter
from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.common.initializer import initializer


class Weight(nn.Cell):
    """A float32 master weight, zero until it is filled. `value()` hands it out in the compute dtype."""

    def __init__(self, shape: tuple[int, ...], dtype=mstype.float32):
        super().__init__()
        self.weight = Parameter(initializer("zeros", shape, mstype.float32), name="weight")
        self.casts = dtype != mstype.float32
        self.dtype = dtype
        self.cast = ops.Cast()

    def value(self):
        return self.cast(self.weight, self.dtype) if self.casts else self.weight


class Linear(Weight):
    """x w', without bias; w is [outputs, inputs] as in Hugging Face's models.

    Inputs: x [T, inputs]. Outputs: [T, outputs].
    """

    def __init__(self, num_inputs: int, num_outputs: int, dtype=mstype.float32):
        super().__init__((num_outputs, num_inputs), dtype)
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x):
        return self.matmul(x, self.value())
