"""A recipe as plain values, as YAML, and two recipes side by side."""

from __future__ import annotations

import dataclasses
from typing import Any, Iterable, Iterator

from mindmodel.recipe.schema import SECTIONS, Recipe
from mindmodel.recipe.text import show

Change = tuple[str, Any, Any]
"""A dotted key, its value before and after, as they would stand in YAML; None where it is not set."""


def _plain(value: Any) -> Any:
    """Dataclasses to dictionaries, tuples to lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-ready values: `name` and one dictionary for each section, every key included."""
    return {"name": recipe.name, **{section: _plain(getattr(recipe, section)) for section in SECTIONS}}


def recipe_to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as a file that `load_recipe` reads back to an equal Recipe.

    `name` is written because a run's file is always called recipe.yaml. Keys that are not set are left out.
    """
    plain = recipe_to_dict(recipe)
    lines = [f"name: {show(plain.pop('name'))}"]
    for section, keys in plain.items():
        lines.append(f"{section}:")
        lines += [f"  {key}: {show(value)}" for key, value in keys.items() if value is not None]
    return "\n".join(lines) + "\n"


def _unequal(prefix: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Differences of two mappings with the same keys; inner mappings are compared key by key."""
    for key, value in old.items():
        if isinstance(value, dict) and isinstance(new[key], dict):
            yield from _unequal(f"{prefix}.{key}", value, new[key])
        elif value != new[key]:
            yield f"{prefix}.{key}", value, new[key]


def differences(old: Recipe, new: Recipe) -> list[Change]:
    """Keys whose values differ, in the order of the schema."""
    before, after = recipe_to_dict(old), recipe_to_dict(new)
    return [change for section in SECTIONS for change in _unequal(section, before[section], after[section])]


def describe(changes: Iterable[Change]) -> tuple[str, ...]:
    """One line `key: old -> new` for each difference."""

    def word(value: Any) -> str:
        return "not set" if value is None else show(value)

    return tuple(f"{key}: {word(old)} -> {word(new)}" for key, old, new in changes)
