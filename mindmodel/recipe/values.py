"""Plain values to the types of the schema: each lossless conversion is made, everything else is refused."""

from __future__ import annotations

import dataclasses
import difflib
import math
import textwrap
from typing import (
    Any,
    Iterable,
    Literal,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from mindmodel.recipe.text import show


class Fault(NamedTuple):
    """What is wrong with one key, and what would work."""

    key: str
    text: str


class Refused(Exception):
    """A value, or a mapping of them, that does not fit its type."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)
        self.faults = list(faults)


def nearest(key: str, known: Iterable[str]) -> str:
    """'Did you mean ...?' for a mistyped dotted key, across sections; empty when nothing is near."""

    def likeness(candidate: str) -> tuple[float, float]:
        last, wanted = candidate.rpartition(".")[2], key.rpartition(".")[2]
        near = difflib.SequenceMatcher(None, wanted, last).ratio()
        if wanted in last.split("_"):
            near = max(near, 0.8)
        return near, difflib.SequenceMatcher(None, key, candidate).ratio()

    best = max(known, key=likeness)
    return f" Did you mean '{best}'?" if likeness(best)[0] >= 0.6 else ""


def type_name(annotation: Any) -> str:
    """A type in words, such as 'whole number or auto'."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return join_or(inner)
    if origin is Union:
        return join_or([type_name(part) for part in inner if part is not type(None)])
    if origin is tuple:
        return {int: "list of whole numbers", str: "list of text"}[inner[0]]
    if dataclasses.is_dataclass(annotation):
        return "mapping"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation]


def join_or(words: Iterable[Any]) -> str:
    """'1, 2 or 4'."""
    texts = [str(word) for word in words]
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def bounds_text(bounds: Mapping[str, Any]) -> str:
    """Bounds in words, such as 'at least 0, below 1'; empty when there are none."""
    words = {"minimum": "at least", "maximum": "at most", "above": "above", "below": "below"}
    return ", ".join(f"{word} {bounds[name]}" for name, word in words.items() if name in bounds)


def _wanted(annotation: Any, bounds: Mapping[str, Any]) -> str:
    """What would work, for the end of a message."""
    words = ", ".join(filter(None, [type_name(annotation), bounds_text(bounds)]))
    return f"a {words}" if words.startswith(("whole", "number", "list", "mapping")) else words


def _number(annotation: type, value: Any) -> Optional[Union[int, float]]:
    """The value as int of 64 bits or float when nothing is lost, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if annotation is float:
        return float(value)
    return int(value) if value == int(value) and abs(value) < 2**63 else None


def _within(value: Union[int, float], bounds: Mapping[str, Any]) -> bool:
    return (
        bounds.get("minimum", -math.inf) <= value <= bounds.get("maximum", math.inf)
        and bounds.get("above", -math.inf) < value < bounds.get("below", math.inf)
    )


def _plain(annotation: Any, value: Any, bounds: Mapping[str, Any]) -> Any:
    """A scalar of the wanted type; ValueError when it is none."""
    if annotation in (int, float):
        number = _number(annotation, value)
        if number is not None and _within(number, bounds):
            return number
    elif get_origin(annotation) is Literal:
        if isinstance(value, str) and value in get_args(annotation):
            return value
    elif isinstance(value, annotation):
        return value
    raise ValueError


def _any_of(annotation: Any, value: Any, bounds: Mapping[str, Any]) -> Any:
    """The value as one of the alternatives of a Union; ValueError when it is none of them."""
    for part in get_args(annotation) if get_origin(annotation) is Union else (annotation,):
        try:
            if part is type(None):
                if value is None:
                    return None
            elif get_origin(part) is tuple:
                items = value if isinstance(value, list) else [value]
                return tuple(_plain(get_args(part)[0], item, bounds) for item in items)
            else:
                return _plain(part, value, bounds)
        except ValueError:
            continue
    raise ValueError


def nested_class(annotation: Any) -> Optional[type]:
    """The dataclass inside an annotation, if there is one."""
    parts = (annotation, *get_args(annotation))
    return next((part for part in parts if dataclasses.is_dataclass(part) and isinstance(part, type)), None)


def convert(key: str, annotation: Any, value: Any, bounds: Mapping[str, Any]) -> Any:
    """One value as its schema type.

    Raises:
        Refused: if the type, the choice or the bounds do not fit.
    """
    nested = nested_class(annotation)
    if nested is not None and isinstance(value, dict):
        return build(nested, key, value)
    try:
        return _any_of(annotation, value, bounds)
    except ValueError:
        quotes = annotation in (str, Optional[str]) and isinstance(value, (bool, int, float))
        too_long = isinstance(value, int) and abs(value) >= 2**63
        hint = " Put it in quotes to make it text." if quotes else " It is beyond 64 bits." if too_long else ""
        given = textwrap.shorten(show(value), 60, placeholder=" ...")
        raise Refused([Fault(key, f"'{given}' does not fit. Use {_wanted(annotation, bounds)}.{hint}")]) from None


def build(cls: type, prefix: str, mapping: Mapping[Any, Any], known: Iterable[str] = ()) -> Any:
    """A schema dataclass from a mapping of its keys.

    Args:
        cls: a dataclass of recipe/schema.py.
        prefix: its dotted name, such as `train`.
        mapping: key to plain value.
        known: all dotted keys there are, for suggestions; default this class's own.

    Raises:
        Refused: with all faults: unknown and missing keys, wrong types, values out of bounds.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints, values, faults = get_type_hints(cls), {}, []
    for name, value in mapping.items():
        key = f"{prefix}.{name}"
        if name not in fields:
            faults.append(Fault(key, f"unknown key.{nearest(key, known or [f'{prefix}.{field}' for field in fields])}"))
            continue
        try:
            values[name] = convert(key, hints[name], value, fields[name].metadata)
        except Refused as refused:
            faults += refused.faults
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in mapping:
            wanted = _wanted(hints[name], field.metadata)
            faults.append(Fault(f"{prefix}.{name}", f"is missing: {field.metadata['meaning']}. Use {wanted}."))
    if faults:
        raise Refused(faults)
    return cls(**values)
