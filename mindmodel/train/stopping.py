"""When to leave the loop early: signals, a time limit, a step to stop at."""

from __future__ import annotations

import signal
import time
from typing import Any, Optional

from mindmodel.recipe.schema import TrainSection

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopper:
    """Notes a signal; the loop asks after every step. The second signal of a kind interrupts at once.

    Use as a context manager: the handlers that stood before come back at the end.
    """

    def __init__(self, train: TrainSection) -> None:
        self._deadline = time.monotonic() + 3600 * train.max_hours if train.max_hours else float("inf")
        self._stop_at = train.stop_at
        self._saves = False
        self.signal: Optional[str] = None

    def __enter__(self) -> "Stopper":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """From the first step on there is something to save; before it, a signal ends the process at once."""
        self._saves = True

    def _note(self, number: int, _frame: Any) -> None:
        if not self._saves or self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name

    def reason(self, step: int) -> Optional[str]:
        """Why to stop after this step, or None."""
        if self.signal is not None:
            return f"{self.signal} received"
        if step == self._stop_at:
            return f"train.stop_at={step} reached"
        if time.monotonic() >= self._deadline:
            return "train.max_hours reached"
        return None
