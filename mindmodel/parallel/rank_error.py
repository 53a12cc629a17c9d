"""How a rank says why it failed, so that of a thousand logs the first failure can be told."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Iterator

from mindmodel.parallel.environment import place
from mindmodel.parallel.heartbeat import HEARTBEATS, host_name

INDENT = "    "
HEAD = re.compile(r"\[(rank \d+|scheduler) on (\S+) at (\d+\.\d+)\] (.*)")


@dataclass(frozen=True, kw_only=True)
class RankError:
    """What `report_error` wrote.

    Attributes:
        who: `rank K` or `scheduler`.
        time_s: Unix time.
        text: `ErrorClass: message`.
    """

    who: str
    host: str
    time_s: float
    text: str


def report_error(error: BaseException) -> None:
    """Print `ErrorClass: message` to standard error; a launched process says who and where it is, and when."""
    text = f"{type(error).__name__}: {error}"
    if HEARTBEATS in os.environ:
        here = place()
        who = "scheduler" if here.is_scheduler else f"rank {here.rank}"
        text = f"[{who} on {host_name()} at {time.time():.3f}] " + text.replace("\n", f"\n{INDENT}")
    print(text, file=sys.stderr, flush=True)


def reported_errors(log: str) -> Iterator[RankError]:
    """What `report_error` wrote into a log, in order."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        match = HEAD.fullmatch(line)
        if match is None:
            continue
        text = [match[4]]
        for more in lines[number + 1:]:
            if not more.startswith(INDENT):
                break
            text.append(more.removeprefix(INDENT))
        yield RankError(who=match[1], host=match[2], time_s=float(match[3]), text="\n".join(text))
