"""The training loss."""

from __future__ import annotations

from mindspore import nn, ops

from mindmodel.layers.kernels import device_kernels


class CrossEntropy(nn.Cell):
    """Sums over the rows whose label is not negative; negative labels are ignored.

    Inputs: logits [T, V], labels int32 [T].
    Outputs: the sum to differentiate (cross entropy + z_loss * squared log-denominator) and the cross entropy alone.
    """

    def __init__(self, vocab_size: int, z_loss: float = 0.0):
        super().__init__()
        self.z_loss = z_loss
        self.cross_entropy = device_kernels().cross_entropy(vocab_size)

    def construct(self, logits, labels):
        entropy, squared_log_sum, _ = self.cross_entropy(logits, labels)
        if self.z_loss == 0.0:
            return entropy, ops.stop_gradient(entropy)
        return entropy + self.z_loss * squared_log_sum, ops.stop_gradient(entropy)
