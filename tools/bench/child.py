"""The measured side of a benchmark: works when it is asked to, and sleeps in a read in between.

A child is a module that is run with a JSON object as its argument. Requests and replies are JSON lines on standard
input and output; what frameworks print goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Iterator

STATUS = Path("/proc/self/status")

Work = Callable[[int], Any]
"""One unit of work by its number from 0; gives what the rivals must agree on."""


def memory_bytes(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def reset_peak() -> None:
    """Have VmHWM begin anew; a read-only /proc keeps the peak so far."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def serve(load: Callable[[dict], Callable[[], Work]]) -> None:
    """Be a child until standard input ends.

    Args:
        load: does the imports, and gives a function that builds the work. What is measured begins with the latter.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        for reply in _replies(load, json.loads(sys.argv[1])):
            print(json.dumps(reply), file=replies)
    except Exception as error:
        traceback.print_exc()
        first = next((line for line in str(error).splitlines() if line.strip("- ")), "")
        print(json.dumps({"error": f"{type(error).__name__}: {first}"}), file=replies)


def _replies(load: Callable[[dict], Callable[[], Work]], spec: dict) -> Iterator[dict[str, Any]]:
    """After the warm-up, and after each request."""
    build = load(spec)
    base_bytes = memory_bytes("VmRSS")
    reset_peak()
    begin = time.perf_counter()
    work = build()
    first = work(0)
    compile_s, done = time.perf_counter() - begin, 1
    for count in _counts(spec["warm_up"] - 1):
        seconds, results = [], [first] if done == 1 else []
        for index in range(done, done + count):
            begin = time.perf_counter()
            results.append(work(index))
            seconds.append(time.perf_counter() - begin)
        done += count
        peak_bytes = memory_bytes("VmHWM") - base_bytes
        yield {"compile_s": compile_s, "seconds": seconds, "results": results, "peak_bytes": peak_bytes}


def _counts(warm_up: int) -> Iterator[int]:
    """How often to work: to warm up, then what the parent asks for."""
    yield warm_up
    yield from map(int, sys.stdin)
