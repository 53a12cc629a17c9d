"""Which rank holds the others up. All wait for the slowest at every sum over the ranks: a step's time names nobody."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

import numpy as np

from mindmodel.parallel.heartbeat import host_name
from mindmodel.parallel.ranks import WIDTH
from mindmodel.parallel.runtime import MatmulProbe, Runtime

EVERY_S = 60.0
PROBE_S = 0.25
SLOW = 1.5
"""Times the median."""
NOTICED_S = 0.02
"""Reading a batch that takes less is never named."""


class SlowRanks:
    """Compares what every rank does alone: reading its batches, and a matmul."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._ranks = runtime, runtime.ranks
        self._probe: Optional[MatmulProbe] = None
        self._last, self._reading_s, self._num_batches = time.monotonic(), 0.0, 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of a batch."""
        start = time.perf_counter()
        yield
        self._reading_s += time.perf_counter() - start
        self._num_batches += 1

    def is_due(self) -> bool:
        """Whether it is time to compare; the first rank's word counts."""
        return self._ranks.count > 1 and time.monotonic() - self._last >= EVERY_S

    def found(self) -> list[str]:
        """A line for every rank that is slow. All ranks must ask."""
        self._probe = self._probe or MatmulProbe(self._runtime)
        flops = self._probe.flops(PROBE_S)
        reading_s = self._reading_s / max(self._num_batches, 1)
        self._last, self._reading_s, self._num_batches = time.monotonic(), 0.0, 0
        return slow(self._ranks.gather(flops, reading_s), self._hosts)

    def _hosts(self) -> list[str]:
        """The host of every rank; names travel as the bits of numbers."""
        name = host_name().encode()[: 8 * WIDTH].ljust(8 * WIDTH, b"\0")
        rows = self._ranks.gather(*np.frombuffer(name, np.float64))
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def slow(rows: np.ndarray, hosts: Callable[[], list[str]]) -> list[str]:
    """What to say of the ranks that are slower than the median by the factor SLOW.

    Args:
        rows: [ranks, 2]: FLOP/s of the matmul, and seconds of reading a batch.
        hosts: asked for names if there is something to say.
    """
    flops, reading_s = rows[:, 0], rows[:, 1]
    usual_flops, usual_s = np.median(flops), max(float(np.median(reading_s)), NOTICED_S)
    computes, reads = flops * SLOW < usual_flops, reading_s > SLOW * usual_s
    if not (computes | reads).any():
        return []
    names, lines = hosts(), []
    for rank in np.flatnonzero(computes | reads):
        reasons = [f"its matmul takes {usual_flops / flops[rank]:.1f} times the median's"] if computes[rank] else []
        if reads[rank]:
            reasons.append(f"reading a batch takes {reading_s[rank]:.2f} s, the median's {np.median(reading_s):.2f} s")
        lines.append(f"rank {rank} on {names[rank]} is slow: {' and '.join(reasons)}")
    return lines
