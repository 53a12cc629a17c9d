"""What a launched process tells its launcher: that it lives, where it hangs, and that it is gone when the launcher is.

Pure Python. Everything here does nothing in a process that was not launched.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from mindmodel.machine import living_parent
from mindmodel.parallel.environment import place

HEARTBEATS = "MINDMODEL_HEARTBEATS"
"""Set by `mindmodel launch`: the folder of the heartbeats."""

LAUNCHER = "MINDMODEL_LAUNCHER"
"""Set by `mindmodel launch`: its process id."""

PHASES = ("starting", "compiling", "data", "step", "evaluating", "saving", "done")
LINE_SIZE = 160
LINE = re.compile(r"([a-z]+) (\d{1,15}) (\d{1,15}\.\d{3}) (\d{1,10}) (\S{1,64}) *\n", re.ASCII)
STACK_SIGNAL = signal.SIGUSR2
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The last sign of life of a rank.

    Attributes:
        phase: one of PHASES, since then.
        step: that is being done, or was done last.
        time_s: Unix time.
    """

    phase: str
    step: int
    time_s: float
    pid: int
    host: str


def heartbeat_file(folder: Path, rank: int) -> Path:
    """Where a rank writes its signs of life."""
    return folder / f"rank_{rank}.heartbeat"


def host_name() -> str:
    """Of this machine, as one word."""
    return re.sub(r"\s", "_", socket.gethostname())[:64] or "unknown"


class Heartbeat:
    """Writes signs of life, each over the one before; without a path, nothing."""

    def __init__(self, path: Optional[Path] = None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._end = f"{os.getpid()} {host_name()}"

    def beat(self, phase: str, step: int) -> None:
        """Say what is done from now on. A disk that is full does not stop the training."""
        if self._file is None:
            return
        line = f"{phase} {step} {time.time():.3f} {self._end}".ljust(LINE_SIZE - 1) + "\n"
        with suppress(OSError):
            os.pwrite(self._file, line.encode(), 0)  # in one piece: a reader sees the old line or the new one


def heartbeat_of_this_process() -> Heartbeat:
    """Of this rank; silent when it was not launched, and in the scheduler."""
    folder, here = os.environ.get(HEARTBEATS), place()
    if folder is None or here.is_scheduler:
        return Heartbeat()
    return Heartbeat(heartbeat_file(Path(folder), here.rank))


def read_heartbeat(path: Path) -> Optional[Beat]:
    """The last sign of life; None when there is none yet or the file is damaged."""
    try:
        with open(path, "rb") as file:
            content = file.read(LINE_SIZE + 1)
    except OSError:
        return None
    match = LINE.fullmatch(content.decode(errors="replace")) if len(content) == LINE_SIZE else None
    if match is None or match[1] not in PHASES:
        return None
    return Beat(phase=match[1], step=int(match[2]), time_s=float(match[3]), pid=int(match[4]), host=match[5])


def attach_to_launcher() -> None:
    """Call once, first of all: show all stacks on SIGUSR2, and do not outlive the launcher."""
    launcher = os.environ.pop(LAUNCHER, None)  # what this process starts is not the launcher's
    if launcher is None:
        return
    dump_stacks_on_signal()
    _end_with(int(launcher))


def dump_stacks_on_signal() -> None:
    """Write the Python stack of every thread to standard error on SIGUSR2, also while C++ code runs or waits."""
    faulthandler.register(STACK_SIGNAL, all_threads=True)


def _end_with(launcher: int) -> None:
    """Let the kernel end this process when the launcher ends; at once if that has happened already.

    The kernel watches the parent. At first that is msrun, which starts the processes and leaves; the launcher inherits
    them. So wait until msrun is gone, which takes it a moment.
    """
    while (parent := os.getppid()) != launcher:
        if living_parent(parent) != launcher and os.getppid() == parent:
            os.killpg(0, signal.SIGKILL)
        time.sleep(0.01)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != launcher:
        os.killpg(0, signal.SIGKILL)
