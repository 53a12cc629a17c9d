"""The one way to talk to the person at the terminal: lines, a bar, a moving line for silent work; numbers in words."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, TextIO

PLAIN_INTERVAL_S = 10.0
TICKER = Path(__file__).with_name("ticker.py")


def duration(seconds: float) -> str:
    """Seconds as people write them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def quantity(number: float, base: int = 1000) -> str:
    """A number of three digits with a prefix for its unit, such as 8.03 G; base 1024 gives Ki, Mi, Gi."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z", "Y") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi")
    power = 0
    while abs(number) >= base - 0.5 and power < len(prefixes) - 1:  # what would be rounded to the base
        number, power = number / base, power + 1
    digits = f"{number:.0f}" if number >= 100 or power == 0 else f"{number:.3g}"
    return f"{digits} {prefixes[power]}"


def data_size(num_bytes: float) -> str:
    """Bytes as people write them: 5 B, 1.5 KiB, 58 GiB."""
    return f"{quantity(num_bytes, 1024)}B"


def printable(text: str) -> str:
    """The text without characters that would move the cursor or change the terminal; lines and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once. An import that it breaks off ends in pages of errors, NumPy's and MindSpore's.

    Where the parent process has told this one to ignore it, it stays ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Terminal:
    """Lines on a stream; on a terminal the last one may move, elsewhere it is repeated as plain lines now and then.

    When whoever reads the stream goes away, or its disk is full, the work goes on unseen.
    """

    def __init__(self, stream: Optional[TextIO] = None):
        self.stream = sys.stdout if stream is None else stream
        self.moves = self.stream.isatty()
        self.shown = False
        self.last_plain_s = float("-inf")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            self.moves = False

    def _clear(self) -> None:
        if self.shown:
            self._write("\r\x1b[K")
            self.shown = False

    def say(self, text: str) -> None:
        """Lines that stay; on a terminal, long ones are broken between words."""
        self._clear()
        if self.moves:
            width = max(20, shutil.get_terminal_size().columns - 1)
            text = "\n".join(_broken(line, width) for line in printable(text).split("\n"))
        self._write(f"{text}\n")

    def status(self, text: str, last: bool = False) -> None:
        """A line that the next one replaces; without a terminal, one plain line every 10 seconds, and the last."""
        if self.moves:
            self._clear()
            self._write(printable(text)[: shutil.get_terminal_size().columns - 1])
            self.shown = True
        elif last or time.monotonic() - self.last_plain_s >= PLAIN_INTERVAL_S:
            self.last_plain_s = time.monotonic()
            self._write(f"{text}\n")

    def progress(self, done: int, total: int, details: str) -> None:
        """A bar with details behind it; the bar gives way when the terminal is narrow."""
        room = shutil.get_terminal_size().columns - len(details) - 16
        width = min(24, room)
        bar = ""
        if self.moves and width >= 6:
            filled = width * done // total
            bar = "[" + "#" * filled + "." * (width - filled) + "] "
        self.status(f"{bar}{done}/{total} {details}", last=done == total)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A moving line while something runs that cannot report.

        It is drawn by a small process of its own: MindSpore's compiler holds Python's lock for many seconds. That
        process ends with this one, however this one ends.
        """
        if not self.moves:
            self.say(f"{text} ...")
            yield
            return
        self._clear()
        self._write("")  # the ticker's lines come after ours
        ticker = subprocess.Popen(
            [sys.executable, "-I", "-S", str(TICKER), text], stdin=subprocess.PIPE, stdout=self.stream
        )
        start = time.monotonic()
        try:
            yield
        finally:
            ticker.communicate()  # its standard input ends
        self.say(f"{text}: {duration(time.monotonic() - start)}")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """`working` while MindSpore is imported."""
        with ended_by_interrupt(), self.working("loading MindSpore"):
            yield


def _broken(line: str, width: int) -> str:
    """A line as several of this width; a word that is longer, such as a path, stays whole."""
    indent = line[: len(line) - len(line.lstrip())] + "  "
    parts = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return "\n".join(parts)
