"""Signals that ask a launched run to stop: the first lets it save, a second of its kind ends it."""

from __future__ import annotations

import signal
from typing import Any, Optional

from mindmodel.train.stopping import SIGNALS


class Interrupts:
    """Notes them while the context lasts; one that the parent process lets this one ignore stays ignored.

    Attributes:
        first: name of the first signal.
        at_once: whether one has come for the second time. Schedulers send several kinds one after another.
    """

    def __init__(self) -> None:
        self.first: Optional[str] = None
        self.at_once = False
        self._received: set[int] = set()

    def __enter__(self) -> Interrupts:
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self.at_once = self.at_once or number in self._received
        self._received.add(number)
        self.first = self.first or signal.Signals(number).name


def signal_to_pass_on(reason: str) -> signal.Signals:
    """What the workers are sent: another kind than the one that came, which they may have received as well.

    Slurm, for one, signals all processes of a job, and a worker takes the second of a kind for an order to end at once.
    """
    return signal.SIGTERM if signal.SIGUSR1.name in reason else signal.SIGUSR1
