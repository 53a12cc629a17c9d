"""Signals that ask a launched run to stop: the first lets it save, the second ends it."""

from __future__ import annotations

import signal
from typing import Any, Optional

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Interrupts:
    """Counts them while the context lasts; one that the parent process lets this one ignore stays ignored."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Optional[str] = None

    def __enter__(self) -> "Interrupts":
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self.count += 1
        self.first = self.first or signal.Signals(number).name
