"""What several devices compute with the same operators."""

from __future__ import annotations

from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops


class EmbeddingByGather(nn.Cell):
    """Rows of a table. Inputs: ids int32 [T], table float32 [V, D]. Outputs: [T, D] in `dtype`."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.gather = ops.Gather()

    def construct(self, ids, table):
        return ops.cast(self.gather(table, ids, 0), self.dtype)  # cast after: the gradient is summed in float32


class AdamWByTensor(nn.Cell):
    """AdamW without bias correction, in place on parameters and moments, with one fused operator a tensor.

    A step with `apply` false leaves all of them bitwise as they were, without a branch in the graph: gradients become
    zero, both betas one and the learning rate zero.

    Args:
        decays: for every parameter whether weight decay touches it.
        checks_finite: whether `apply` can be false.

    Inputs: parameters, both moments and gradients (tuples); lr, beta1, beta2, eps, decay, scale of the gradients
    (float32 scalars), apply (bool scalar). Outputs: a tuple to depend on.
    """

    finite_or_zero: type

    def __init__(self, decays: tuple[bool, ...], checks_finite: bool):
        super().__init__(auto_prefix=False)
        self.decays, self.checks_finite = decays, checks_finite
        self.finite = self.finite_or_zero()
        self.adam = ops.AdamWeightDecay()

    def construct(self, parameters, first, second, grads, lr, beta1, beta2, eps, decay, scale, apply):
        zero, one = Tensor(0.0, mstype.float32), Tensor(1.0, mstype.float32)
        if self.checks_finite:
            beta1, beta2 = ops.select(apply, beta1, one), ops.select(apply, beta2, one)
            lr, scale = ops.select(apply, lr, zero), ops.select(apply, scale, zero)
        done = ()
        for i in range(len(parameters)):
            grad = self.finite(grads[i], scale) if self.checks_finite else grads[i] * scale
            tensor_decay = decay if self.decays[i] else zero
            done = done + self.adam(
                parameters[i], first[i], second[i], lr, beta1, beta2, eps, tensor_decay, grad
            )
        return done
