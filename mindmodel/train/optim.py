"""AdamW and what stands between the gradients and it: the global norm, clipping and the finite check."""

from __future__ import annotations

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from mindmodel.recipe.schema import OptimSection

LARGEST_FLOAT = 3.4e38


class GlobalNorm(nn.Cell):
    """Root of the summed squares of all gradients.

    Each sum of squares is a product of a row with itself: several times faster than a reduction on CPU.
    """

    def __init__(self):
        super().__init__()
        self.dot = ops.MatMul(transpose_b=True)

    def construct(self, grads):
        total = Tensor(0.0, mstype.float32)
        for grad in grads:
            row = grad.reshape((1, -1))
            total = total + self.dot(row, row).reshape(())
        return ops.sqrt(total)


class AdamW(nn.Cell):
    """AdamW with decoupled weight decay and bias correction, fused per parameter.

    A step with `apply` false leaves weights, moments and step count bitwise as they were, without a branch in the graph:
    gradients become zero, the decays one and the learning rate zero. `checks_finite` says whether that can happen.

    Inputs: grads (as the parameters), scale of the gradients (scalar), apply (bool scalar), lr (float32 scalar).
    Source: Loshchilov and Hutter (arXiv 1711.05101) algorithm 2; equal to torch.optim.AdamW, whose eps is added after the
    bias correction: the fused kernel adds it before, so it gets eps * sqrt(1 - beta2^t).
    """

    def __init__(self, parameters: list[Parameter], optim: OptimSection, checks_finite: bool = True):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.first_moments = self.parameters.clone(prefix="first_moment", init="zeros")
        self.second_moments = self.parameters.clone(prefix="second_moment", init="zeros")
        self.beta1_power = Parameter(Tensor(1.0, mstype.float32), name="beta1_power")
        self.beta2_power = Parameter(Tensor(1.0, mstype.float32), name="beta2_power")
        self.beta1, self.beta2, self.eps = optim.beta1, optim.beta2, optim.eps
        self.weight_decay = optim.weight_decay
        self.decays = tuple(self._decays(parameter, optim) for parameter in parameters)
        self.checks_finite = checks_finite
        self.adam = ops.Adam()

    @staticmethod
    def _decays(parameter: Parameter, optim: OptimSection) -> bool:
        if optim.weight_decay == 0 or len(parameter.shape) == 1:
            return False
        return optim.decay_embeddings or parameter.name != "embedding.weight"

    def state(self) -> dict[str, Parameter]:
        """Everything a checkpoint needs beside the weights, by name."""
        held = [*self.first_moments, *self.second_moments, self.beta1_power, self.beta2_power]
        return {parameter.name: parameter for parameter in held}

    def construct(self, grads, scale, apply, lr):
        one = Tensor(1.0, mstype.float32)
        beta1, beta2 = ops.select(apply, one * self.beta1, one), ops.select(apply, one * self.beta2, one)
        lr, scale = ops.select(apply, lr, one * 0.0), ops.select(apply, scale, one * 0.0)
        power1, power2 = self.beta1_power * beta1, self.beta2_power * beta2
        # 1 - power is a divisor: before the first applied step it must not be zero
        used1, used2 = ops.select(apply, power1, one * 0.5), ops.select(apply, power2, one * 0.5)
        eps = self.eps * ops.sqrt(1.0 - used2)
        kept = 1.0 - lr * self.weight_decay
        done = (ops.assign(self.beta1_power, power1), ops.assign(self.beta2_power, power2))
        for i in range(len(self.parameters)):
            parameter = self.parameters[i]
            grad = grads[i] * scale
            if self.checks_finite:  # a select by a scalar condition would not fuse
                grad = ops.select(ops.abs(grad) <= LARGEST_FLOAT, grad, ops.zeros_like(grad))
            if self.decays[i]:
                parameter = ops.depend(parameter, ops.assign(parameter, parameter * kept))
            done = done + self.adam(
                parameter, self.first_moments[i], self.second_moments[i], used1, used2, lr, beta1, beta2, eps, grad
            )
        return done
