"""A moving line with the seconds so far, until standard input ends. Started by terminal.py as a process of its own."""

import select
import shutil
import signal
import sys
import time

SPINNER = "|/-\\"


def tick(text: str) -> None:
    """Draw until the other end of standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that does the work
    start, turn = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        line = f"{SPINNER[turn % 4]} {text}  {int(time.monotonic() - start)} s"
        sys.stdout.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        sys.stdout.flush()
        turn += 1
    sys.stdout.write("\r\x1b[K")
    sys.stdout.flush()


if __name__ == "__main__":
    tick(sys.argv[1])
