"""AdamW."""

from __future__ import annotations

from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.kernels import device_kernels
from mindmodel.recipe.schema import OptimSection


class AdamW(nn.Cell):
    """AdamW with decoupled weight decay and bias correction, fused per parameter.

    A step with `apply` false leaves weights, moments and step count bitwise as they were. `checks_finite`: whether that
    can happen. `norms`: as of the kernels in AdamWByTensor.

    Inputs: grads (as the parameters), scale of the gradients (scalar), apply (bool scalar), lr (float32 scalar).
    Outputs: a tuple to depend on; with `norms` its first is as the kernels'.
    Source: Loshchilov and Hutter (arXiv 1711.05101) algorithm 2; equal to torch.optim.AdamW, whose eps is added after
    the bias correction. The fused kernel corrects no bias, so lr, eps and decay are handed to it rescaled.
    """

    def __init__(
        self, parameters: list[Parameter], optim: OptimSection, checks_finite: bool = True, norms: bool = False
    ):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.first_moments = self.parameters.clone(prefix="first_moment", init="zeros")
        self.second_moments = self.parameters.clone(prefix="second_moment", init="zeros")
        self.beta1_power = Parameter(Tensor(1.0, mstype.float32), name="beta1_power")
        self.beta2_power = Parameter(Tensor(1.0, mstype.float32), name="beta2_power")
        self.norms = norms
        self.beta1, self.beta2, self.eps = optim.beta1, optim.beta2, optim.eps
        self.weight_decay = optim.weight_decay
        decays = tuple(self._decays(parameter, optim) for parameter in parameters)
        self.update = device_kernels().adamw(decays, checks_finite, norms)

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
        power1 = self.beta1_power * ops.select(apply, one * self.beta1, one)
        power2 = self.beta2_power * ops.select(apply, one * self.beta2, one)
        # 1 - power is a divisor: before the first applied step it must not be zero
        used1, used2 = ops.select(apply, power1, one * 0.5), ops.select(apply, power2, one * 0.5)
        root = ops.sqrt(1.0 - used2)
        correction = root / (1.0 - used1)
        beta1, beta2, decay = one * self.beta1, one * self.beta2, self.weight_decay / correction
        done = (ops.assign(self.beta1_power, power1), ops.assign(self.beta2_power, power2))
        updated = self.update(
            self.parameters, self.first_moments, self.second_moments, grads,
            lr * correction, beta1, beta2, self.eps * root, decay, scale, apply,
        )
        return updated + done
