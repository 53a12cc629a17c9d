"""Which line of Python made each node of a graph, from the readable graphs that MindSpore saves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import mindmodel
from mindmodel.machine import package_folder

SCOPE = re.compile(r"\s*# Fullname with scope: \((.*)\)")
CALL = re.compile(r"\s*# In file (.+?):(\d+)(?:~\d+)?, \d+~\d+/(.*)")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A line of Python; `file` is relative where it lies beside the package or below the working folder, and not
    MindSpore's."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def read_sources(path: Path) -> dict[str, Source]:
    """The innermost line outside of MindSpore that led to each node, by the node's scope.

    Args:
        path: a graph that MindSpore wrote with MS_DEV_SAVE_GRAPHS; below each node stands its scope, and then the calls
            that led to it, outermost first.
    """
    framework = f"{package_folder('mindspore')}/"
    found: dict[str, Source] = {}
    with open(path, errors="replace") as file:
        for scope, calls in _nodes(file):
            own = [call for call in calls if not call[0].startswith(framework)]
            if scope not in found and calls:
                name, line = (own or calls)[-1]
                found[scope] = Source(file=_shown(name) if own else name, line=line)
    return found


def _nodes(lines: Iterator[str]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Scope and calls of each node."""
    scope: Optional[str] = None
    calls: list[tuple[str, int]] = []
    for line in lines:
        if begin := SCOPE.match(line):
            if scope is not None:
                yield scope, calls
            scope, calls = begin[1], []
        elif call := CALL.match(line):
            calls.append((call[1], int(call[2])))
    if scope is not None:
        yield scope, calls


def _shown(name: str) -> str:
    for folder in (Path(mindmodel.__file__).parents[1], Path.cwd()):
        if Path(name).is_relative_to(folder):
            return str(Path(name).relative_to(folder))
    return name
