"""The feed-forward layer."""

from __future__ import annotations

from mindspore import nn

from mindmodel.layers.kernels import device_kernels
from mindmodel.layers.linear import Linear
from mindmodel.recipe.schema import ModelSection


class MLP(nn.Cell):
    """down(silu(gate(x)) * up(x)).

    The fused weight's rows alternate in blocks of gate and up, so that a split over tensor parallel ranks is a plain
    split of rows.

    Inputs: x [T, hidden_size]. Outputs: [T, hidden_size].
    Source: checked against transformers' `LlamaMLP`.
    """

    def __init__(self, model: ModelSection):
        super().__init__()
        self.gate_up = Linear(model.hidden_size, 2 * model.ffn_size)
        self.swiglu = device_kernels().swiglu(model.ffn_blocks)
        self.down = Linear(model.ffn_size, model.hidden_size)

    def construct(self, x):
        return self.down(self.swiglu(self.gate_up(x)))
