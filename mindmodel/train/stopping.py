"""When to leave the loop early: signals, a time limit, a step to stop at."""

from __future__ import annotations

import signal
import time
from typing import Any, Iterable

from mindmodel.recipe.schema import TrainSection

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
GO_ON, STEP_REACHED, TIME_IS_UP = 0, -1, -2
"""What `Stopper.code` gives beside the number of a signal: numbers, for ranks to agree on. When one stops, all do."""


def agreed(codes: Iterable[float]) -> int:
    """Of the codes of all ranks the one that counts: a signal before a limit, a limit before going on."""
    given = [int(code) for code in codes]
    return max(given) if max(given) > 0 else min(given)


def reason(code: int, step: int) -> str:
    """Why to stop after a step, in words."""
    if code > 0:
        return f"{signal.Signals(code).name} received"
    return {STEP_REACHED: f"train.stop_at={step} reached", TIME_IS_UP: "train.max_hours reached"}[code]


class Stopper:
    """Notes a signal; the loop asks after every step. The second signal of a kind interrupts at once.

    Until `begin` there is nothing to save and a signal ends the process at once: while MindSpore compiles, Python
    cannot handle one. A signal that the parent process has told this one to ignore, as nohup does, stays ignored.

    Use as a context manager: the handlers that stood before come back at the end.
    """

    def __init__(self, train: TrainSection) -> None:
        self._deadline = time.monotonic() + 3600 * train.max_hours if train.max_hours else float("inf")
        self._stop_at = train.stop_at
        self._received: set[int] = set()
        self._signal = GO_ON

    def __enter__(self) -> "Stopper":
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, signal.SIG_DFL) for number in heeded}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """From the first step on there is something to save."""
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        if number in self._received:
            raise KeyboardInterrupt
        self._received.add(number)
        self._signal = self._signal or number

    def code(self, step: int) -> int:
        """Whether to stop after this step: the number of a signal, STEP_REACHED, TIME_IS_UP or GO_ON."""
        if self._signal:
            return self._signal
        if step == self._stop_at:
            return STEP_REACHED
        return TIME_IS_UP if time.monotonic() >= self._deadline else GO_ON
