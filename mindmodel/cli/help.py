"""How the help of verbs looks; apart from the other arguments, since `mindmodel --help` reads no recipe."""

from __future__ import annotations

import argparse
import textwrap


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A description's prose fills the terminal's width; examples stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if part.startswith("example") else textwrap.fill(part, width, break_on_hyphens=False)
            for part in text.strip().split("\n\n")
        )
