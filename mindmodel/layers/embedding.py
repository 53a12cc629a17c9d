"""Token embedding."""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import ops

from mindmodel.layers.linear import Weight


class Embedding(Weight):
    """Rows of the table.

    Inputs: ids int32 [T]. Outputs: [T, hidden_size] in the compute dtype.
    """

    def __init__(self, vocab_size: int, hidden_size: int, dtype=mstype.float32):
        super().__init__((vocab_size, hidden_size), dtype)
        self.gather = ops.Gather()

    def construct(self, ids):
        rows = self.gather(self.weight, ids, 0)  # cast after: the gradient is then summed over tokens in float32
        return self.cast(rows, self.dtype) if self.casts else rows
