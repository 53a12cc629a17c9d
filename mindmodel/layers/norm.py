"""Root mean square normalisation."""

from __future__ import annotations

from mindspore import Parameter
from mindspore import dtype as mstype
from mindspore import nn
from mindspore.common.initializer import initializer

from mindmodel.layers.kernels import device_kernels


class RMSNorm(nn.Cell):
    """x / rms(x) * weight over the last dim; the weight is kept in float32.

    Inputs: x [T, size]. Outputs: [T, size] in x's dtype.
    Source: checked against transformers' `LlamaRMSNorm`.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = Parameter(initializer("ones", (size,), mstype.float32), name="weight")
        self.rms_norm = device_kernels().rms_norm(size, eps)

    def construct(self, x):
        return self.rms_norm(x, self.weight)


class ResidualNorm(nn.Cell):
    """A norm at a branch of the residual stream: what it and the branch give back is added here.

    Inputs: x [T, size]. Outputs: x, for the stream, and x / rms(x) * weight, for the branch.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = Parameter(initializer("ones", (size,), mstype.float32), name="weight")
        self.residual_norm = device_kernels().residual_norm(size, eps)

    def construct(self, x):
        return self.residual_norm(x, self.weight)
