"""What one node reports, as a message that passes between nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from mindmodel.terminal import printable

MAX_TEXT = 400
MAX_ENTRIES = 200


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing that is so on one node.

    Attributes:
        text: a few words for a table.
        fault: why this alone is in the way of a job, and what would work; empty if it is not.
        amount: orders texts that may differ between nodes.
    """

    text: str
    fault: str = ""
    amount: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a node says of itself.

    Attributes:
        host: its name.
        facts: by the row of the table.
        recipe: values of the resolved recipe by key, to name those that differ.
    """

    host: str
    facts: Mapping[str, Fact]
    recipe: Mapping[str, str]

    def to_message(self) -> dict[str, Any]:
        """As JSON-ready values, long texts cut."""
        facts = {row: [_cut(fact.text), _cut(fact.fault), fact.amount] for row, fact in self.facts.items()}
        recipe = {key: _cut(value) for key, value in self.recipe.items()}
        return {"host": _cut(self.host), "facts": facts, "recipe": recipe}


def report_of(message: Any) -> Report:
    """The report in a part of a message that came from another machine.

    Raises:
        ValueError: if it is none.
    """
    message = message if isinstance(message, dict) else {}
    facts, recipe = message.get("facts"), message.get("recipe")
    if not isinstance(facts, dict) or not isinstance(recipe, dict) or max(len(facts), len(recipe)) > MAX_ENTRIES:
        raise ValueError("a report without facts")
    return Report(
        host=_text(message.get("host")),
        facts={_text(row): _fact(fact) for row, fact in facts.items()},
        recipe={_text(key): _text(value) for key, value in recipe.items()},
    )


def _fact(value: Any) -> Fact:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], (int, float)):
        raise ValueError("a report with a fact that is none")
    return Fact(text=_text(value[0]), fault=_text(value[1]), amount=float(value[2]))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError("a report with a text that is none, or too long")
    return printable(value)


def _cut(text: str) -> str:
    """On one line, and not too long."""
    return " ".join(text.split())[:MAX_TEXT]
