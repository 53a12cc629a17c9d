"""What the user sees of a launched run: rank 0's own lines as it prints them, and a moving line where it has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional, Sequence

from mindmodel.supervise.hang import Sign
from mindmodel.terminal import Terminal, duration
from mindmodel.ticker import SPINNER

PROGRESS = re.compile(r"\d+/\d+ ")
HIDDEN = re.compile(
    r"\[(?:rank \d+|scheduler) on |\[(?:ERROR|CRITICAL|WARNING|INFO|DEBUG)\] \w+\("
    r"|(?:Current t|T)hread 0x[0-9a-f]+ |  File \".*\", line \d+ in "
)
"""What is shown when the run has failed or hangs, and what MindSpore's developers want to know."""

READ_BYTES = 1 << 20


class Screen:
    """Follows a log file as it grows.

    Args:
        log: rank 0's; None on a node without it.
    """

    def __init__(self, terminal: Terminal, log: Optional[Path]) -> None:
        self.terminal, self.log = terminal, log
        self._position, self._rest, self._turn = 0, b"", 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self.terminal.say(text)

    def waiting(self, text: str) -> None:
        """A moving line."""
        self._turn += 1
        self.terminal.status(f"{SPINNER[self._turn // 2 % 4]} {text}" if self.terminal.moves else text)

    def update(self, signs: Sequence[Sign]) -> None:
        """Show what is new."""
        for line in self._new_lines():
            if HIDDEN.match(line):
                continue
            if self.terminal.moves and PROGRESS.match(line):
                self.terminal.status(line)
            else:
                self.terminal.say(line)
        slow = [sign for sign in signs if sign.phase in ("starting", "compiling")]
        if slow:
            longest = max(slow, key=lambda sign: sign.age_s)
            self.waiting(f"{longest.phase}: {len(slow)} of {len(signs)} ranks here, {duration(longest.age_s)}")
        elif signs and all(sign.rank > 0 for sign in signs):
            last = min(signs, key=lambda sign: sign.step)
            self.waiting(f"ranks {signs[0].rank} to {signs[-1].rank}: {last.phase}, step {last.step}")

    def finish(self) -> None:
        """Show what is left, a last line without its end too, and take the moving line away."""
        self.update(())
        if self._rest:
            self.terminal.say(self._rest.decode(errors="replace"))
            self._rest = b""
        if self.terminal.moves:
            self.terminal.status("")

    def _new_lines(self) -> list[str]:
        if self.log is None:
            return []
        try:
            with open(self.log, "rb") as file:
                file.seek(self._position)
                piece = file.read(READ_BYTES)
        except OSError:
            return []
        self._position += len(piece)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [line.decode(errors="replace") for line in lines]
