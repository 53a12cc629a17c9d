"""Strategies of hypothesis that make nearly right things, and what must come of them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from pathlib import Path
from typing import Any

from hypothesis import event
from hypothesis import strategies as st

from mindmodel.cli.main import main

ODD = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 3, 7, 2**31, 2**63, 10**30, 0.5, -1e-9, float("nan"), float("inf"), 1e308]),
    st.sampled_from(["", "a", "auto", "none", "1", "../../etc", "/", "a\0b", "*", "0" * 400, "\ud800", "nan", "-"]),
    st.sampled_from([[], {}, [[]], [0], [-1, 2], ["a"], {"": 1}, {"a": {"b": []}}]),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
"""What no key expects, or only some do."""


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values inside of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in inner for place in [(*path, key), *_places(child, (*path, key))]]


@st.composite
def damaged(draw, value: Any) -> Any:
    """A JSON value in which one to three values are other ones, missing, doubled, exchanged or under another name."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        if not places:
            break
        *path, key = draw(st.sampled_from(places))
        parent = value
        for step in path:
            parent = parent[step]
        kind = draw(st.sampled_from(["odd", "odd", "odd", "gone", "renamed", "exchanged", "doubled"]))
        if kind == "odd":
            parent[key] = copy.deepcopy(draw(ODD))
        elif kind == "gone":
            del parent[key]
        elif kind == "renamed" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = parent.pop(key)
        elif kind == "exchanged":
            other = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
            parent[key], parent[other] = parent[other], parent[key]
        elif kind == "doubled" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
    return value


@st.composite
def damaged_bytes(draw, content: bytes) -> bytes:
    """A file's content cut short, longer, or with some bytes that are other ones."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = draw(st.sampled_from(["byte", "byte", "number", "cut", "more"]))
        if kind == "byte" and changed:
            changed[place] = draw(st.integers(0, 255))
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
            changed[place:place + 8] = number.to_bytes(8, "little")
        elif kind == "cut":
            del changed[place:]
        else:
            changed[place:place] = draw(st.binary(max_size=16))
    return bytes(changed)


def text_of(value: Any) -> str:
    """As JSON; what UTF-8 cannot hold is escaped."""
    return json.dumps(value)


def outcome(*arguments: object) -> tuple[int, str]:
    """Run a verb; it ends well or with one message. Gives the exit code and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # argparse, with its own message
            assert stopped.code == 2 and "error:" in err.getvalue()
            return 2, err.getvalue()
    assert code in (0, 1, 2), err.getvalue()
    assert "Traceback" not in err.getvalue()
    event(f"{arguments[0]}: exit code {code}")
    assert (code == 2) == bool(re.search(r"^[A-Z]\w+Error: \S", err.getvalue(), re.MULTILINE)), err.getvalue()
    return code, out.getvalue() + err.getvalue()


def files_in(folder: Path) -> dict[str, bytes]:
    """All that a folder holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
