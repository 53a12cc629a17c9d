"""The training loss."""

from __future__ import annotations

from mindspore import nn, ops

from mindmodel.layers.kernels import device_kernels


class HeadLoss(nn.Cell):
    """Output layer and cross entropy, summed over the rows whose label is not negative; negative labels are ignored.

    Args:
        vocab_size: V.
        z_loss: weight of the squared log of the softmax denominator.
        gradient: false for evaluation; such a loss cannot be differentiated.

    Inputs: hidden [T, D], weight float32 [V, D], labels int32 [T].
    Outputs: the sum to differentiate (cross entropy + z_loss * squared log-denominator) and the cross entropy alone.
    """

    def __init__(self, vocab_size: int, z_loss: float, gradient: bool):
        super().__init__()
        self.head_loss = device_kernels().head_loss(vocab_size, z_loss, gradient)

    def construct(self, hidden, weight, labels):
        outputs = self.head_loss(hidden, weight, labels)
        return outputs[0], ops.stop_gradient(outputs[1])
