"""Every key of a recipe, from the schema: type, default, meaning."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, Iterator, NamedTuple, get_type_hints

from mindmodel.recipe.schema import SECTIONS
from mindmodel.recipe.text import show
from mindmodel.recipe.values import bounds_text, nested_class, type_name

WIDTH = 80

HEAD = """\
base, name and eight sections. Values are YAML; a command line has them as
section.key=value, such as train.steps=20 or parallel.stages=[2,2].
base: path of another recipe, relative to this file; this file's keys win.
name: default the file's name; it names the run folder.
All other paths are relative to the folder in which the command is typed.
"""


class Key(NamedTuple):
    """One key of a recipe."""

    name: str
    type: str
    default: str
    meaning: str


def _keys_of(cls: type, prefix: str) -> Iterator[Key]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        bounds = bounds_text(field.metadata)
        words = type_name(hints[field.name]) + (f", {bounds}" if bounds else "")
        yield Key(f"{prefix}.{field.name}", words, _default(field.default), field.metadata["meaning"])
        nested = nested_class(hints[field.name])
        if nested is not None:
            yield from _keys_of(nested, f"{prefix}.{field.name}")


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return "not set" if value is None else f"default {show(value)}"


def all_keys() -> list[Key]:
    """Every key of the schema, in its order."""
    return [key for section, cls in SECTIONS.items() for key in _keys_of(cls, section)]


def keys_table() -> str:
    """The keys as text of at most 80 columns: name and type, default at the right, meaning below."""
    lines = [HEAD]
    for key in all_keys():
        left = f"{key.name}  ({key.type})"
        gap = WIDTH - len(left) - len(key.default)
        lines.append(left + " " * gap + key.default if gap > 1 else f"{left}\n{key.default:>{WIDTH}}")
        lines += textwrap.wrap(key.meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
