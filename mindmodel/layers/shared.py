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


class SquareSumsByTensor(nn.Cell):
    """Sum of all squares of each. Inputs: tuple of n tensors. Outputs: float32 [n]."""

    square_sum: type

    def __init__(self):
        super().__init__()
        self.squares, self.map, self.stack = self.square_sum(), ops.HyperMap(), ops.Stack()

    def one(self, tensor):
        """Of one tensor."""
        return self.squares((tensor,))

    def construct(self, tensors):
        return self.stack(self.map(self.one, tensors))  # a comprehension takes the square of n to compile


class AdamWByTensor(nn.Cell):
    """AdamW without bias correction, in place on parameters and moments, with one fused operator a tensor.

    A step with `apply` false leaves all of them bitwise as they were, without a branch in the graph: gradients become
    zero, both betas one and the learning rate zero.

    Args:
        decays: for every parameter whether weight decay touches it.
        checks_finite: whether `apply` can be false.
        norms: whether sums of squares are asked for.

    Inputs: parameters, both moments and gradients (tuples of n); lr, beta1, beta2, eps, decay, scale of the gradients
    (float32 scalars), apply (bool scalar).
    Outputs: a tuple to depend on; with `norms` its first is float32 [3, n]: the sums of squares of each parameter after
    the update, of its gradient, and of what was taken from it.
    """

    finite_or_zero: type
    square_sums: type

    def __init__(self, decays: tuple[bool, ...], checks_finite: bool, norms: bool = False):
        super().__init__(auto_prefix=False)
        self.decays, self.checks_finite, self.norms = decays, checks_finite, norms
        self.squares = self.square_sums()
        self.finite = self.finite_or_zero()
        self.adam, self.map = ops.AdamWeightDecay(), ops.HyperMap()

    def construct(self, parameters, first, second, grads, lr, beta1, beta2, eps, decay, scale, apply):
        zero, one = Tensor(0.0, mstype.float32), Tensor(1.0, mstype.float32)
        if self.checks_finite:
            beta1, beta2 = ops.select(apply, beta1, one), ops.select(apply, beta2, one)
            lr, scale = ops.select(apply, lr, zero), ops.select(apply, scale, zero)
        # a tuple to which a loop appends is copied each time: compilation would grow with the square of the parameters
        update = ops.partial(self.one, lr, beta1, beta2, eps, decay, scale)
        done = self.map(update, parameters, first, second, grads, self.decays)
        if not self.norms:
            return done
        first, second = ops.depend(first, done), ops.depend(second, done)
        steps = self.map(ops.partial(self.taken, lr, eps, decay), parameters, first, second, self.decays)
        return ops.stack((self.squares(parameters), self.squares(grads), self.squares(steps))), done

    def one(self, lr, beta1, beta2, eps, decay, scale, parameter, first, second, grad, decays):
        """The update of one tensor."""
        grad = self.finite(grad, scale) if self.checks_finite else grad * scale
        tensor_decay = decay if decays else Tensor(0.0, mstype.float32)
        return self.adam(parameter, first, second, lr, beta1, beta2, eps, tensor_decay, grad)

    def taken(self, lr, eps, decay, parameter, first, second, decays):
        """What the update took from a tensor, from the moments and the tensor as they are after it."""
        step = lr * first / (ops.sqrt(second) + eps)
        if decays:
            step = (step + lr * decay * parameter) / (1.0 - lr * decay)
        return step
