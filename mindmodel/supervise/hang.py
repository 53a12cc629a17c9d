"""Whether a rank hangs, and which: from the ranks' signs of life."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Optional

from mindmodel.supervise.failures import MAX_LINES, Failure, log_tail

COUNTED = ("data", "step", "evaluating", "saving")
"""Phases that make progress, in their order within a step; to compile, and to start, may take as long as it takes."""

DUMP_LIMIT_S = 3.0
QUIET_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The last sign of life of a rank, as old as its node knows.

    Attributes:
        age_s: since then, by the clock of the rank's own node.
        stopped: whether the system lets its process do nothing, as after SIGSTOP or under a debugger.
    """

    rank: int
    phase: str
    step: int
    age_s: float
    stopped: bool = False

    def failure(self, host: str, lines: tuple[str, ...], log: str = "") -> Failure:
        """That this was the last one."""
        text = f"hangs: phase '{self.phase}' of step {self.step}, no sign of life for {self.age_s:.0f} s"
        text += "; its process is stopped" if self.stopped else ""
        return Failure(
            who=f"rank {self.rank}",
            host=host,
            text=text,
            time_s=time.time() - self.age_s,
            lines=lines,
            log=log,
        )


def hanging_rank(signs: Iterable[Sign], limit_s: float) -> Optional[Sign]:
    """The rank that all others wait for, when nothing has moved within the limit; None when something does.

    While one rank saves, evaluates or compiles, the others wait for it in their next step, so only when all stand
    still one of them hangs: the one whose process is stopped, or else the one that is furthest behind.
    """
    alive = [sign for sign in signs if sign.phase != "done"]
    if not alive or any(sign.phase not in COUNTED or sign.age_s < limit_s for sign in alive):
        return None
    return min(alive, key=lambda sign: (not sign.stopped, sign.step, COUNTED.index(sign.phase), -sign.age_s))


def stack_of(log: Path, ask: Callable[[], None]) -> tuple[str, ...]:
    """The stacks that a process writes into its log when it is asked to; empty when it does not answer.

    Args:
        ask: makes it write, as by SIGUSR2.
    """
    before = log.stat().st_size if log.exists() else 0
    ask()
    end, size, since = time.monotonic() + DUMP_LIMIT_S, before, time.monotonic()
    while time.monotonic() < end and (size == before or time.monotonic() - since < QUIET_S):
        time.sleep(0.05)
        now = log.stat().st_size if log.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
    if size <= before:
        return ()
    return tuple(log_tail(log, size - before).splitlines()[:MAX_LINES])
