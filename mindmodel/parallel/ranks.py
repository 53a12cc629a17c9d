"""The processes of a job as one of them meets the others on the host: a few numbers go round."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from mindmodel.parallel.environment import Place

WIDTH = 8
"""Numbers are handed round by so many: every length has a graph of its own."""


class Gather(nn.Cell):
    """Inputs: float32 [n]. Outputs: those of all ranks one behind another, float32 [ranks * n]."""

    def __init__(self):
        super().__init__()
        self.all_gather = ops.AllGather()

    def construct(self, values):
        return self.all_gather(values)


class Ranks:
    """All ranks of a job, seen from this one. Every rank must make the same calls in the same order."""

    def __init__(self, place: Place) -> None:
        self.rank, self.count = place.rank, place.num_ranks
        self._gather = Gather() if self.count > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this one writes what is written once: checkpoints, metrics, the terminal's lines."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self.gather()

    def gather(self, *values: float) -> np.ndarray:
        """What every rank gives here, in the order of their ranks. Returns when all have given theirs.

        Args:
            values: as many on every rank.

        Returns:
            float64 [ranks, len(values)], bit for bit.
        """
        mine = np.zeros(max(1, -(-len(values) // WIDTH)) * WIDTH)
        mine[: len(values)] = values
        if self._gather is None:
            return mine[None, : len(values)]
        # no device gathers float64 everywhere: its bits travel as pairs of float32, which are only copied
        bits = self._gather(Tensor(mine.view(np.float32))).asnumpy()
        return np.ascontiguousarray(bits).view(np.float64).reshape(self.count, -1)[:, : len(values)]
