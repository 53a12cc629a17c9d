"""Messages between the nodes of a job: JSON objects, a line each, of limited length. Pure Python.

Whoever reaches the port may send anything: what is no message is a stranger's.
"""

from __future__ import annotations

import json
import resource
from typing import Any, Mapping

MAX_LINE_BYTES = 1 << 18
TOO_LONG = f"it sent a line of more than {MAX_LINE_BYTES} bytes"
OTHER_FILES = 128

Message = dict[str, Any]


class Stranger(Exception):
    """The other side does not keep to the protocol; the text says how."""


def encode(message: Mapping[str, Any]) -> bytes:
    """The line of a message."""
    return json.dumps(message, ensure_ascii=False).encode(errors="replace") + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line.

    Raises:
        Stranger: if it is none.
    """
    if len(line) > MAX_LINE_BYTES:
        raise Stranger(TOO_LONG)
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Stranger("it sent a line that is not JSON") from error
    if not isinstance(message, dict):
        raise Stranger("it sent a line that is no JSON object")
    return message


def allow_connections(count: int) -> None:
    """A thousand nodes are more open files than a process usually may have unless it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
