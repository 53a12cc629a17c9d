"""The two sides of a comparison: what a user writes for one, and how it becomes a trace. Imports no mindspore.

MindSpore's mode, kernels and threads belong to a process: every side that needs it has a process of its own.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Sequence

from mindmodel.debug.trace import INDEX_NAME, Trace, places, read_trace
from mindmodel.errors import TraceError, TrainingError
from mindmodel.models.family import architecture_differences
from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal

SETTINGS = re.compile(r"(?P<path>.+?):(?P<keys>[a-z_]+\.[a-z_.]+=.*)")
BETWEEN = re.compile(r",(?=[a-z_]+\.[a-z_.]+=)")
"""The comma before a key, not that within a value."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What both sides of a comparison are given.

    Attributes:
        overrides: key=value pairs, put on top of both recipes.
        single, shrink: as of all verbs.
        step: whose tokens are taken; None: random ones.
    """

    overrides: tuple[str, ...] = ()
    single: bool = False
    shrink: bool = False
    step: Optional[int] = None

    def arguments(self) -> list[str]:
        """The same on a command line, but for the overrides."""
        flags = [f"--{name}" for name in ("single", "shrink") if getattr(self, name)]
        return flags + (["--step", str(self.step)] if self.step is not None else [])


class Side:
    """One side.

    Attributes:
        text: what the user wrote.
        follows: whether it computes the batch of the other side, which is then traced first.
        recipe: that it is computed from, where there is one.
    """

    follows = False
    recipe: Optional[Recipe] = None

    def __init__(self, text: str) -> None:
        self.text = text

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        """Compute it, or read it.

        Args:
            other: the other side's, for one that follows.
        """
        raise NotImplementedError


class TraceFolder(Side):
    """A trace that was written before."""

    @classmethod
    def recognise(cls, text: str, common: Common) -> Optional[Side]:
        """A folder with a trace."""
        return cls(text) if (Path(text) / INDEX_NAME).is_file() else None

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        return read_trace(Path(self.text))


class RecipeSide(Side):
    """A recipe, with settings of this side alone: RECIPE or RECIPE:key=value,key=value."""

    def __init__(self, text: str, common: Common) -> None:
        super().__init__(text)
        self.path, own = split_settings(text)
        self.keys, self.common = [*common.overrides, *own], common
        self.recipe = load_recipe(self.path, self.keys, single=common.single, shrink=common.shrink)

    @classmethod
    def recognise(cls, text: str, common: Common) -> Optional[Side]:
        """A file, whose errors are then a recipe's."""
        return cls(text, common) if Path(split_settings(text)[0]).is_file() else None

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        with tempfile.TemporaryDirectory(prefix="mindmodel-trace-") as name, terminal.working(f"computing {self.text}"):
            folder = Path(name, "trace")
            arguments = ["trace", self.path, *self.keys, *self.common.arguments(), "--out", str(folder)]
            run_command("debug", *arguments, "--json")
            return dataclasses.replace(read_trace(folder), source=self.text)


KINDS_OF_SIDES: tuple[Callable[[str, Common], Optional[Side]], ...] = (TraceFolder.recognise, RecipeSide.recognise)
"""The first that recognises a text has it."""


def split_settings(text: str) -> tuple[str, list[str]]:
    """A path, and the key=value pairs behind its colon."""
    match = SETTINGS.fullmatch(text)
    return (match["path"], BETWEEN.split(match["keys"])) if match else (text, [])


def side_of(text: str, common: Common) -> Side:
    """What a user means; nothing is computed yet.

    Raises:
        TraceError: if it is nothing that can be traced.
        RecipeError: if it is a recipe with faults.
    """
    for recognise in KINDS_OF_SIDES:
        side = recognise(text, common)
        if side is not None:
            return side
    raise TraceError(
        f"{text}: neither a recipe nor a trace. A side of a comparison is RECIPE, RECIPE:key=value,key=value, or a "
        "folder that `mindmodel debug trace` wrote."
    )


def open_sides(texts: Sequence[str], common: Common, terminal: Terminal) -> tuple[Trace, Trace]:
    """Both traces, each side computed in a process of its own.

    Raises:
        TraceError: if a side is none, if they are different models, or if neither has a batch.
        TrainingError: if MindSpore fails while one is computed.
    """
    first, second = (side_of(text, common) for text in texts)
    _refuse_other_models(first, second)
    if first.follows and second.follows:
        raise TraceError(f"{first.text}, {second.text}: neither says which tokens to compute. Give a recipe beside one.")
    if first.follows:
        later = second.trace(None, terminal)
        return first.trace(later, terminal), later
    earlier = first.trace(None, terminal)
    return earlier, second.trace(earlier, terminal)


def _refuse_other_models(first: Side, second: Side) -> None:
    """Before anything is computed."""
    if first.recipe is None or second.recipe is None:
        return
    one, other = first.recipe.model, second.recipe.model
    if places(one) != places(other):
        told = "; ".join(f"{name} is {left} and {right}" for name, left, right in architecture_differences(one, other))
        raise TraceError(
            f"{first.text}, {second.text}: models of other shapes cannot be compared: {told}. Give both the same sizes."
        )


def run_command(*arguments: str) -> str:
    """Run a verb in a process of its own and give what it prints.

    Raises:
        TraceError: with its message, if it refuses its input.
        TrainingError: with the end of what it says, if it fails otherwise.
    """
    done = subprocess.run(
        [sys.executable, "-m", "mindmodel", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode == 0:
        return done.stdout
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == 2:
        raise TraceError(lines[-1])
    raise TrainingError(f"`mindmodel {' '.join(arguments)}` failed with exit code {done.returncode}: {lines[-1]}")
