"""Print the README's commands, one a line, so that a script can run what a reader is told to type.

usage: python tools/readme_commands.py setup      the two commands that install and run
       python tools/readme_commands.py mindmodel  every command that begins with mindmodel
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def commands() -> list[str]:
    """Lines of all bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


if __name__ == "__main__":
    prefix = {"setup": "python3 -m venv", "mindmodel": "mindmodel "}[sys.argv[1]]
    print("\n".join(command for command in commands() if command.startswith(prefix)))
