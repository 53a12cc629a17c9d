"""What a run has written down of its steps, beside the same steps made again. Pure Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Mapping, Optional

NAMES = {"loss": "loss", "grad_norm": "gradient norm"}
"""Of metrics.jsonl, which holds them with all their digits, and in words."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a step computed; None is a number that was not finite."""

    loss: Optional[float]
    grad_norm: Optional[float]

    @classmethod
    def of(cls, loss: float, grad_norm: float) -> "Numbers":
        """As metrics.jsonl would hold them."""
        return cls(**{
            name: number if math.isfinite(number) else None
            for name, number in (("loss", loss), ("grad_norm", grad_norm))
        })

    def __str__(self) -> str:
        return ", ".join(f"{word} {_shown(getattr(self, name))}" for name, word in NAMES.items())

    def unlike(self, was: "Numbers") -> Iterator[str]:
        """A word on each number that differs from what it was, in any bit."""
        for name, word in NAMES.items():
            now, before = getattr(self, name), getattr(was, name)
            if now != before:
                yield f"{word} was {_shown(before)}{_relative(now, before)}"


def recorded(rows: Iterable[Mapping[str, Any]]) -> dict[int, Numbers]:
    """By step, of the rows of metrics.jsonl that hold a training step."""
    return {row["step"]: Numbers(loss=row["loss"], grad_norm=row["grad_norm"]) for row in rows if "loss" in row}


def _shown(number: Optional[float]) -> str:
    return "not finite" if number is None else f"{number:.9g}"  # tells any two float32 apart


def _relative(now: Optional[float], before: Optional[float]) -> str:
    if now is None or not before:
        return ""
    return f" ({abs(now - before) / abs(before):.1e} of it)"
