"""YAML text to plain Python values and back. Numbers, booleans and null as in YAML 1.2, so `3e-4` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Hashable, Union

import yaml

from mindmodel.errors import RecipeError

LIMIT_BYTES = 1 << 20

_SCALARS = (
    ("null", r"|~|null|Null|NULL", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses duplicate keys, tags, and aliases, which can make a small file expand without bound."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        sign = "*" if isinstance(event, yaml.AliasEvent) else "!" if event.tag else None
        if sign:
            problem = f"a value starts with '{sign}'. Put it in quotes"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"'{key.value}' is given twice. Keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value.replace("_", ""))


class _Dumper(yaml.SafeDumper):
    """Quotes each text that the loader would take for something else."""

    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def parse(text: str, where: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: one YAML document.
        where: name of its place, for messages.

    Raises:
        RecipeError: if it is not YAML, names a key twice, or holds an alias or a tag.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        tab = " (a tab). Indent with spaces" if r"'\t'" in str(error.problem) else ""
        raise RecipeError(f"{where}{line}: {error.problem}{tab}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: cannot be read as YAML: {str(error).splitlines()[0]}.") from None


def read_mapping(path: Union[str, Path]) -> dict[str, Any]:
    """The top-level mapping of a YAML file.

    Raises:
        RecipeError: if the file is missing, larger than 1 MiB, not UTF-8, not YAML, or not a mapping.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        works = "Use the path of a YAML file, such as recipes/cpu/tiny.yaml"
        raise RecipeError(f"{path}: {error.strerror}. {works}.") from None
    if len(data) > LIMIT_BYTES:
        raise RecipeError(f"{path}: is larger than 1 MiB, so it is no recipe. Use a YAML file of sections and keys.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    mapping = parse(text, str(path))
    if not isinstance(mapping, dict):
        raise RecipeError(f"{path}: holds no sections. Use a mapping such as 'train: {{steps: 100}}'.")
    return {str(key): value for key, value in mapping.items()}


def show(value: Any) -> str:
    """A value on one line, as it would be written in a recipe."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("...\n").strip()
