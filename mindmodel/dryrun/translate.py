"""MindSpore's compile errors in one line: its exception says that an operator failed, its log says why."""

from __future__ import annotations

import re
from pathlib import Path

LOGGED = re.compile(r"^\[(?:ERROR|CRITICAL)\] (?!ME)\w+\(.*?\] ?(?:\w+\] )?(.+)$", re.MULTILINE)
RAISED = re.compile(r"^(\w*(?:Error|Exception)): (.+)$", re.MULTILINE)


def reason(log: Path) -> str:
    """Why a rank's compilation failed.

    Args:
        log: everything that the process printed.
    """
    text = log.read_text(errors="replace") if log.is_file() else ""
    raised = [f"{kind}: {message}" for kind, message in RAISED.findall(text)]
    logged = [message for message in LOGGED.findall(text) if "te'" not in message]
    found = [*dict.fromkeys([*logged, *raised[-1:]])]
    return " | ".join(found) if found else "it gave no reason; the machine may lack memory"
