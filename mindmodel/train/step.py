"""One training step as one compiled graph: loss, gradients over micro-batches, clipping, finite check, optimizer."""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.kernels import device_kernels
from mindmodel.recipe.schema import TrainSection
from mindmodel.train.optim import AdamW


class Totals(nn.Cell):
    """What a step sums over the whole model.

    Inputs: cross entropy, gradients (tuple). Outputs: cross entropy, sum of all squares of the gradients.
    """

    def __init__(self):
        super().__init__()
        self.square_sum = device_kernels().square_sum()

    def construct(self, entropy, grads):
        return entropy, self.square_sum(grads)


class TrainStep(nn.Cell):
    """A whole optimizer step.

    Args:
        network: with `norms` as the optimizer.
        totals: how cross entropy and gradients are summed; default for one device.

    Inputs: ids and labels int32 [sequences, S], lr float32 scalar.
    Outputs: mean cross entropy over the labels that count, global gradient norm before clipping, whether the weights
    were updated. Where the optimizer has `norms`: also the sums of squares of n parameters after the update, of their
    gradients summed over the labels and of what was taken from them, float32 [3, n], and those of the activations.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: AdamW,
        train: TrainSection,
        micro_batches: int,
        totals: Optional[nn.Cell] = None,
    ):
        super().__init__(auto_prefix=False)
        self.network, self.optimizer = network, optimizer
        self.grad = ms.value_and_grad(network, None, weights=optimizer.parameters, has_aux=True)
        self.totals = totals or Totals()
        self.plus, self.map = ops.Add(), ops.HyperMap()
        self.micro_batches = micro_batches
        self.clip_norm = train.clip_norm
        self.checks_finite = train.check_finite != "none"

    def accumulate(self, ids, labels):
        """What the network gives beside the sum to differentiate, and gradients, summed over the micro-batches."""
        if self.micro_batches == 1:
            outputs, grads = self.grad(ids, labels)
            return outputs[1:], grads
        size = ids.shape[0] // self.micro_batches
        sums, grads = (), ()
        for i in range(self.micro_batches):
            begin, shape = (i * size, 0), (size, ids.shape[1])
            # a micro-batch begins when the gradients of the one before are there: else all forward passes come first
            ids, labels = ops.depend((ids, labels), grads)
            outputs, part_grads = self.grad(ops.slice(ids, begin, shape), ops.slice(labels, begin, shape))
            sums = self.add(sums, outputs[1:])
            grads = self.add(grads, part_grads)
        return sums, grads

    def add(self, total, part):
        """Element by element; an empty total is zero."""
        return part if len(total) == 0 else self.map(self.plus, total, part)

    def update(self, entropy, grads, num_labels, lr):
        """Clip, check and apply summed gradients; gives loss, norm, whether they were applied, and sums of squares."""
        entropy, squares = self.totals(entropy, grads)
        norm = ops.sqrt(squares) / num_labels
        scale = 1.0 / num_labels
        if self.clip_norm > 0:
            scale = scale * ops.minimum(self.clip_norm / (norm + 1e-6), 1.0)
        loss = entropy / num_labels
        apply = Tensor(True)
        if self.checks_finite:
            apply = ops.logical_and(ops.isfinite(norm), ops.isfinite(loss))
        updated = self.optimizer(grads, scale, apply, lr)
        found = ops.depend(loss, updated), norm, apply
        return found + (updated[0],) if self.optimizer.norms else found

    def count(self, labels):
        """Labels that count, at least 1."""
        return ops.maximum(ops.cast(labels >= 0, mstype.float32).sum(), 1.0)

    def construct(self, ids, labels, lr):
        sums, grads = self.accumulate(ids, labels)
        return self.update(sums[0], grads, self.count(labels), lr) + sums[1:]
