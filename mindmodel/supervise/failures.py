"""Which rank failed first, and why: from the logs and the exit of every rank.

When one rank fails, all others lose their connection to it, and some of them end earlier. So the first failure is the
earliest one that is not a lost connection.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Optional

from mindmodel.parallel.heartbeat import host_name
from mindmodel.parallel.rank_error import reported_errors
from mindmodel.supervise.processes import Exit
from mindmodel.terminal import printable

BAD_INPUT = 2
LOG_BYTES = 1 << 20
SHOWN_LINES, SHOWN_CHARS = 15, 400
MAX_LINES, MAX_CHARS = 120, 4000

LOST = re.compile(
    r"connection|connect to|disconnect|reset by peer|broken pipe|\bpeer\b|timed? ?out|heartbeat|unreachable|"
    r"abnormal compute graph nodes|exit with exception|failed to (send|receive)|EI000[26]",
    re.IGNORECASE,
)
"""What MindSpore, HCCL and sockets say when another process is gone or does not answer."""

MINDSPORE = re.compile(
    r"\[(?:ERROR|CRITICAL)\] \w+\([^)]*\):(\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d)\.(\d{3})\.\d{3} \[[^\]]*\] (?:\w+\] )?(.*)"
)
PYTHON = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Fault)(?:: .*)?")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a rank, or a whole node, failed.

    Attributes:
        who: `rank K`, `scheduler` or `node K`.
        text: its own error.
        time_s: Unix time.
        lost: whether the text only says that another process is gone.
        bad_input: whether it is a message to the user and all there is to say.
        lines: the last of its log, or its stack.
        log: path of it on its host; may be empty.
    """

    who: str
    host: str
    text: str
    time_s: float
    lost: bool = False
    bad_input: bool = False
    lines: tuple[str, ...] = ()
    log: str = ""

    def describe(self) -> str:
        """For the user."""
        shown = [f"{self.who} on {self.host} failed first: {self.text}"]
        if self.lines:
            shown += [f"from its log, {self.log}:", *(f"  {line}" for line in self.lines)]
        return "\n".join(shown)


def first_failure(failures: Iterable[Optional[Failure]]) -> Optional[Failure]:
    """The one that the others follow from; None when there is none."""
    return min(filter(None, failures), key=lambda failure: (failure.lost, failure.time_s), default=None)


def failure_of(who: str, log: Path, ended: Optional[Exit]) -> Optional[Failure]:
    """Why a process of this node failed; None when it runs and says nothing of the kind.

    Args:
        who: `rank K` or `scheduler`.
        log: everything it printed.
        ended: as it should not have; None while it runs.
    """
    text = log_tail(log)
    found = _own_error(text, ended)
    if found is None:
        return None
    error, time_s = found
    return Failure(
        who=who,
        host=host_name(),
        text=error,
        lost=bool(LOST.search(error)),
        bad_input=ended is not None and ended.code == BAD_INPUT,
        time_s=time_s,
        lines=last_lines(text),
        log=str(log),
    )


def _own_error(log: str, ended: Optional[Exit]) -> Optional[tuple[str, float]]:
    """The error and its time: as the rank reports it, else MindSpore's, else Python's, else how it ended."""
    reported = [(error.text, error.time_s) for error in reported_errors(log)]
    if ended is None:
        return reported[0] if reported else None
    if not reported and ended.code is not None and ended.code == -signal.SIGKILL:
        return _how(ended), ended.time_s
    errors = [*reported, *_mindspore_errors(log)]
    caused = [error for error in errors if not LOST.search(error[0])]
    if caused or errors:
        return (caused or errors)[0]
    python = [line for line in log.splitlines() if PYTHON.fullmatch(line)]
    return (python[-1] if python else _how(ended)), ended.time_s


def _mindspore_errors(log: str) -> list[tuple[str, float]]:
    found = []
    for day, milliseconds, text in MINDSPORE.findall(log):
        moment = time.mktime(time.strptime(day, "%Y-%m-%d-%H:%M:%S"))  # it prints local time
        found.append((text, moment + int(milliseconds) / 1000))
    return found


def _how(ended: Exit) -> str:
    """The way it ended, for a process that said nothing."""
    if ended.code is None:
        return "ended as soon as it was started"
    if ended.code == 0:
        return "ended while it was still needed"
    if ended.code == -signal.SIGKILL:
        return (
            "killed by SIGKILL, which mindmodel did not send: most often it is the kernel, when memory runs out "
            "(dmesg tells)"
        )
    if ended.code < 0:
        return f"killed by {signal_name(-ended.code)}"
    return f"ended with exit code {ended.code} and without a message"


def signal_name(number: int) -> str:
    """Such as SIGSEGV."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def log_tail(log: Path, max_bytes: int = LOG_BYTES) -> str:
    """The end of a log; empty when there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
            return file.read(max_bytes).decode(errors="replace")
    except OSError:
        return ""


def last_lines(text: str, count: int = SHOWN_LINES) -> tuple[str, ...]:
    """The last lines that are not empty, fit to be shown."""
    lines = [line for line in text.splitlines() if line.strip()]
    return tuple(printable(line)[:SHOWN_CHARS] for line in lines[-count:])


KINDS: dict[str, Any] = {
    **dict.fromkeys(("who", "host", "text", "log"), str),
    **dict.fromkeys(("lost", "bad_input"), bool),
    "time_s": (int, float),
    "lines": list,
}


def failure_to_json(failure: Failure) -> dict[str, Any]:
    """As it goes over the wire, cut to what `failure_from_json` takes."""
    lines = [line[:SHOWN_CHARS] for line in failure.lines[-MAX_LINES:]]
    return {**dataclasses.asdict(failure), "text": failure.text[:MAX_CHARS], "lines": lines}


def failure_from_json(values: Any) -> Optional[Failure]:
    """The failure that another node has sent; None when that is no such thing."""
    if not isinstance(values, dict) or set(values) != set(KINDS):
        return None
    if not all(isinstance(values[name], kind) for name, kind in KINDS.items()):
        return None
    if not all(isinstance(line, str) for line in values["lines"]):
        return None
    lines = tuple(printable(line)[:SHOWN_CHARS] for line in values["lines"][-MAX_LINES:])
    words = {name: printable(values[name])[:MAX_CHARS] for name, kind in KINDS.items() if kind is str}
    return Failure(**{**values, **words, "lines": lines})
