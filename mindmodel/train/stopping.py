"""When to leave the loop early: signals, a time limit, a step to stop at."""

from __future__ import annotations

import signal
import time
from typing import Any, Optional

from mindmodel.recipe.schema import TrainSection

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


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
        self.signal: Optional[str] = None

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
        self.signal = self.signal or signal.Signals(number).name

    def reason(self, step: int) -> Optional[str]:
        """Why to stop after this step, or None."""
        if self.signal is not None:
            return f"{self.signal} received"
        if step == self._stop_at:
            return f"train.stop_at={step} reached"
        if time.monotonic() >= self._deadline:
            return "train.max_hours reached"
        return None
