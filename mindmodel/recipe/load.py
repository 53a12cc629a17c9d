"""Recipe files and key=value overrides to a checked Recipe."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence, Union

from mindmodel.errors import RecipeError
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.rules import faults_of, resolve_degrees, with_defaults
from mindmodel.recipe.schema import SECTIONS, Recipe
from mindmodel.recipe.shrink import shrink as shrunk
from mindmodel.recipe.shrink import single as on_one_device
from mindmodel.recipe.text import parse, read_mapping, show
from mindmodel.recipe.values import Fault, Refused, build, nearest

PathLike = Union[str, Path]

KNOWN_KEYS = tuple(f"{section}.{field.name}" for section, cls in SECTIONS.items() for field in dataclasses.fields(cls))

COMMAND_LINE = "command line"


class _Draft:
    """The keys written so far, the place where each was written, and the faults found."""

    def __init__(self, path: PathLike) -> None:
        self.path = str(path)
        self.name: Any = None
        self.sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        self.places: dict[str, str] = {}
        self.lines: list[str] = []

    def place(self, key: str) -> str:
        """Where a key, or the mapping around it, was written; the recipe's file when it was not."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, self.path)

    def report(self, faults: Iterable[Fault]) -> None:
        self.lines += [f"{self.place(fault.key)}, {fault.key}: {fault.text}" for fault in faults]

    def stop_on_faults(self) -> None:
        if self.lines:
            raise RecipeError("\n".join(self.lines))

    def put(self, section: str, key: str, value: Any, place: str) -> None:
        self.sections[section][key] = value
        self.places[f"{section}.{key}"] = place

    def add_mapping(self, mapping: dict[str, Any], place: str) -> None:
        """The sections of one file."""
        for section, keys in mapping.items():
            if section not in SECTIONS:
                hint = nearest(section, (*SECTIONS, *KNOWN_KEYS)) or f" Use {', '.join(SECTIONS)}."
                self.lines.append(f"{place}, {section}: no such section.{hint}")
            elif isinstance(keys, dict):
                for key, value in keys.items():
                    self.put(section, str(key), value, place)
            elif keys is not None:
                self.lines.append(f"{place}, {section}: '{show(keys)}' is not a mapping. Use keys, one to a line.")

    def add_override(self, text: str) -> None:
        """One key=value of the command line; section.key.inner=value sets one value of a mapping."""
        dotted, equals, written = text.partition("=")
        section, _, key = dotted.partition(".")
        key, _, inner = key.partition(".")
        if not equals or not dotted:
            self.lines.append(f"{COMMAND_LINE}: '{text}' is not key=value. Use a form such as train.steps=100.")
        elif dotted in SECTIONS:
            works = f"Set its keys one by one, as {dotted}.{dataclasses.fields(SECTIONS[dotted])[0].name}=..."
            self.lines.append(f"{COMMAND_LINE}, {dotted}: is a section. {works}")
        elif section not in SECTIONS or not key:
            self.lines.append(f"{COMMAND_LINE}, {dotted}: unknown key.{nearest(dotted, KNOWN_KEYS)}")
        else:
            value = _override_value(written, dotted)
            if inner:
                around = self.sections[section].get(key)
                value = {**(around if isinstance(around, dict) else {}), inner: value}
            self.put(section, key, value, COMMAND_LINE)

    def take_name(self, name: Any) -> None:
        """The recipe's name, which is the run folder's too."""
        self.name = name
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]*[\w+-]", name):
            works = "Use letters, digits, '_', '-' and '.'"
            self.lines.append(f"{self.path}, name: '{show(name)}' is no name. {works}.")

    def add_file(self) -> None:
        """The recipe's file, on top of its base if it names one."""
        mapping = read_mapping(self.path)
        base = mapping.pop("base", None)
        self.take_name(mapping.pop("name", None) or re.sub(r"[^\w.+-]+", "-", Path(self.path).stem))
        if base is not None:
            self.add_base(base)
        self.add_mapping(mapping, self.path)

    def add_plain(self, values: Mapping[str, Any]) -> None:
        """What `recipe_to_dict` gives."""
        self.take_name(values.get("name"))
        self.add_mapping({section: keys for section, keys in values.items() if section != "name"}, self.path)

    def add_base(self, base: Any) -> None:
        if not isinstance(base, str):
            self.lines.append(f"{self.path}, base: '{show(base)}' is not a path. Use one path, relative to this file.")
            return
        path = str(Path(self.path).parent / base)
        try:
            mapping = read_mapping(path)
        except RecipeError as error:
            raise RecipeError(f"{self.path}, base: {error}") from None
        if "base" in mapping:
            own = f"'{path}' has a base of its own, and one level is read"
            self.lines.append(f"{self.path}, base: {own}. Use '{show(mapping['base'])}' or put the keys into one file.")
        self.add_mapping({key: value for key, value in mapping.items() if key not in ("base", "name")}, path)

    def recipe(self) -> Recipe:
        """The typed recipe. Raises RecipeError with all faults so far."""
        sections: dict[str, Any] = {}
        for name, cls in SECTIONS.items():
            try:
                sections[name] = build(cls, name, self.sections[name], KNOWN_KEYS)
            except Refused as refused:
                self.report(refused.faults)
        self.stop_on_faults()
        return Recipe(name=self.name, **sections)

    def check(self, recipe: Recipe) -> None:
        """Raise RecipeError with all broken rules of recipe/rules.py."""
        self.report(faults_of(recipe))
        self.stop_on_faults()


def _override_value(text: str, key: str) -> Any:
    """The value after '=': YAML, or the bare text where YAML has no use for it, as in data.source=*.txt."""
    try:
        return parse(text, f"{COMMAND_LINE}, {key}")
    except RecipeError:
        if text.startswith(("[", "{", '"', "'")):
            raise
        return text


def load_with_changes(
    path: PathLike,
    overrides: Sequence[str] = (),
    *,
    single: bool = False,
    shrink: bool = False,
    devices: Optional[int] = None,
) -> tuple[Recipe, tuple[str, ...]]:
    """Like `load_recipe`, with what `single` and `shrink` changed: one line `key: old -> new` for each key.

    Args:
        devices: to fill in an automatic degree before anything is shrunk; default it stays.

    Raises:
        RecipeError: as load_recipe.
        LayoutError: if the recipe cannot be laid out over `devices`.
    """
    draft = _Draft(path)
    draft.add_file()
    for override in overrides:
        draft.add_override(override)
    recipe = with_defaults(draft.recipe())
    draft.check(recipe)
    typed = frozenset(key for key, place in draft.places.items() if place == COMMAND_LINE)
    changes: tuple[str, ...] = ()
    if devices is not None and not single:
        recipe = resolve_degrees(recipe, devices)
    for wanted, change in ((single, on_one_device), (shrink, shrunk)):
        if wanted:
            recipe, lines = change(recipe, keep=typed)
            changes += lines
    draft.check(recipe)
    return recipe, changes


def load_recipe(
    path: PathLike, overrides: Sequence[str] = (), *, single: bool = False, shrink: bool = False
) -> Recipe:
    """Read a recipe, put the overrides on top, fill in derived defaults and check everything.

    Args:
        path: a YAML file; its `base:` is relative to it. Other paths stay as written: relative to the working folder.
        overrides: `section.key=value`, the value as in YAML. They win over the file, the file wins over its base.
        single: all parallel degrees 1.
        shrink: the same structure in small sizes; keys of `overrides` stay as typed.

    Returns:
        The recipe with `num_kv_heads`, `head_size` and `qk_norm` filled in. `parallel` may still hold an `auto` degree
        (rules.resolve_degrees) and `model.vocab_size` may be None (the tokenizer's).

    Raises:
        RecipeError: with one line for each fault: unknown, missing and ill-typed keys at once, then broken rules.
    """
    return load_with_changes(path, overrides, single=single, shrink=shrink)[0]


def load_run_recipe(path: PathLike) -> Recipe:
    """Read the resolved recipe.yaml of a run. Types and bounds are checked; rules across sections are not applied.

    Raises:
        RecipeError: if the file is missing, does not fit the schema, or lacks a size of the model.
    """
    draft = _Draft(path)
    draft.add_file()
    recipe = with_defaults(draft.recipe())
    missing = [name for name in ("vocab_size", "head_size") if getattr(recipe.model, name) is None]
    works = "A run's recipe names every size. Take it from the index.json of one of its checkpoints."
    draft.report(Fault(f"model.{name}", f"is missing. {works}") for name in missing)
    draft.stop_on_faults()
    return recipe


def with_overrides(recipe: Recipe, overrides: Sequence[str], where: PathLike) -> Recipe:
    """A resolved recipe with key=value pairs put on top.

    Args:
        overrides: as load_recipe's.
        where: the file that the recipe was read from.

    Raises:
        RecipeError: as load_recipe.
    """
    draft = _Draft(where)
    draft.add_plain(recipe_to_dict(recipe))
    for override in overrides:
        draft.add_override(override)
    changed = draft.recipe()
    draft.check(changed)
    return changed


def recipe_from_dict(values: Mapping[str, Any], where: PathLike) -> Recipe:
    """The recipe that `recipe_to_dict` made plain values of, such as the one in a checkpoint's index.

    Args:
        where: the file that the values were read from.

    Raises:
        RecipeError: if they do not fit the schema, or the name is none.
    """
    draft = _Draft(where)
    draft.add_plain(values)
    return draft.recipe()
