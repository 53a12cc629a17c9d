"""Ends what a launcher has started when the launcher itself is killed. Started by processes.py as a process of its own.

What belongs to it is known by its folder for temporary files, which stands in the environment of each.
"""

import os
import shutil
import signal
import sys
import time

LIMIT_S = 5.0


def marked(mark: bytes) -> list[int]:
    """Living processes that have this in their environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if mark in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:  # it has ended, or is another user's
                pass
    return found


def guard(folder: str) -> None:
    """Wait until standard input ends; unless it says `done`, end the processes and remove the folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they may be sent to all processes of a job
    if sys.stdin.buffer.read() == b"done":
        return
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and (pids := marked(f"TMPDIR={folder}".encode())):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard(sys.argv[1])
