"""All processes below this one, also those whose parents have left: found, waited for and ended by id. Linux only."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence

from mindmodel.machine import living_parent

PR_SET_CHILD_SUBREAPER = 36
GUARD = Path(__file__).with_name("guard.py")
END_LIMIT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a process ended.

    Attributes:
        code: exit code; -N for a process that signal N ended; None when it could not be seen.
        time_s: Unix time at which that was noticed.
    """

    code: Optional[int]
    time_s: float


class Processes:
    """As a context manager: children of children come here when their parents leave, and none is left at the end.

    Nor are their temporary files: those that are killed cannot remove them. When this process is killed itself, a guard
    sees to both.
    """

    def __init__(self) -> None:
        self.exits: dict[int, Exit] = {}
        self._started: list[subprocess.Popen] = []  # kept: one that is forgotten would be waited for elsewhere

    def __enter__(self) -> Processes:
        _inherit_orphans(True)
        self._folder = tempfile.mkdtemp(prefix="mindmodel-launch-")
        guard = [sys.executable, "-I", "-S", str(GUARD), self._folder]
        self._guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self.end_all()
        _inherit_orphans(False)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._guard.communicate(b"done")

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Start a program in a session of its own, its output in a file; gives its id."""
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command,
                env={**environment, "TMPDIR": self._folder},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process.pid

    def reap(self) -> None:
        """Note which children have ended."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.exits[pid] = Exit(code=os.waitstatus_to_exitcode(status), time_s=time.time())

    def children(self, of: Optional[int] = None) -> list[int]:
        """Ids of the living processes that this one, or another, is the parent of; not the guard's."""
        parent = os.getpid() if of is None else of
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        return sorted(pid for pid in pids if pid != self._guard.pid and living_parent(pid) == parent)

    def send(self, pids: Iterable[int], number: signal.Signals) -> None:
        """Send a signal to those of our children that live; a child keeps its id until we have reaped it."""
        for pid in pids:
            if pid not in self.exits:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self, pids: Iterable[int]) -> None:
        """End children at once; one that leads a process group takes it along."""
        for pid in pids:
            with suppress(ProcessLookupError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)

    def end_all(self) -> list[int]:
        """End every process below this one at once; gives those that the kernel does not let go, as in a driver."""
        give_up = time.monotonic() + END_LIMIT_S
        while (pids := self.children()) and time.monotonic() < give_up:
            self.end(pids)
            time.sleep(0.01)
            self.reap()
        self.reap()
        return pids


def _inherit_orphans(wanted: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel does not let a process inherit orphans")


def environment_of(pid: int) -> dict[str, str]:
    """That a process was started with; empty when it is gone."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in content.split(b"\0"))
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}
