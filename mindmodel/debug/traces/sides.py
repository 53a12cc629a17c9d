"""The two sides of a comparison: what a user writes for one, and how it becomes a trace. Imports no mindspore.

MindSpore's mode, kernels and threads belong to a process: every side that needs it has a process of its own.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from mindmodel.convert.folder import CONFIG
from mindmodel.debug.traces.hf_side import trace_hugging_face
from mindmodel.debug.traces.inputs import Inputs, inputs_of
from mindmodel.debug.traces.layout_side import num_devices_of, sized, trace_layout
from mindmodel.debug.traces.msprobe import find_dump, read_dump
from mindmodel.debug.traces.trace import INDEX_NAME, Trace, places, read_trace, write_trace
from mindmodel.errors import TraceError, TrainingError
from mindmodel.models.family import architecture_differences
from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal
from mindmodel.train.init_from import initial_weights

SETTINGS = re.compile(r"(?P<path>.+?):(?P<keys>[a-z_]+\.[a-z_.]+=.*)")
BETWEEN = re.compile(r",(?=[a-z_]+\.[a-z_.]+=)")
"""The comma before a key, not that within a value."""
REFUSAL = re.compile(r"^\w+Error: (?P<message>.*)", re.MULTILINE | re.DOTALL)


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


class Side(ABC):
    """One side.

    Attributes:
        text: what the user wrote.
        leads: whether it has a batch of its own, which the other side is to compute.
        follows: whether it computes the batch of the other side, which is then traced first.
        recipe: that it is computed from, where there is one.
    """

    leads = False
    follows = False
    recipe: Optional[Recipe] = None

    def __init__(self, text: str) -> None:
        self.text = text

    def beside(self, other: "Side") -> None:
        """Told what the other side is, before anything is computed."""

    @abstractmethod
    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        """Compute it, or read it.

        Args:
            other: the other side's, if this one follows.
        """


class TraceFolder(Side):
    """A trace that was written before."""

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        """Read it."""
        return read_trace(Path(self.text))


class RecipeSide(Side):
    """A recipe, with settings of this side alone: RECIPE or RECIPE:key=value,key=value."""

    recipe: Recipe

    def __init__(self, text: str, common: Common) -> None:
        super().__init__(text)
        self.path, own = split_settings(text)
        self.keys, self.common = [*common.overrides, *own], common
        self._load()

    def _load(self) -> None:
        self.recipe = load_recipe(self.path, self.keys, single=self.common.single, shrink=self.common.shrink)

    def beside(self, other: Side) -> None:
        """As Side's: the tokens of a dump are taken."""
        self.follows = other.leads

    def begin_with(self, weights: str) -> None:
        """Take these weights, unless the recipe names others."""
        if self.recipe.train.init_from is None:
            self.keys.append(f"train.init_from={weights}")
            self._load()

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        """Compute it."""
        with tempfile.TemporaryDirectory(prefix="mindmodel-trace-") as name, terminal.working(f"computing {self.text}"):
            folder, like = Path(name, "trace"), Path(name, "like")
            arguments = ["trace", self.path, *self.keys, *self.common.arguments(), "--out", str(folder)]
            if other is not None:
                write_trace(other, like)
                arguments += ["--like", str(like)]
            run_command("debug", *arguments, "--json")
            return dataclasses.replace(read_trace(folder), source=self.text)


class LayoutSide(RecipeSide):
    """A recipe for several devices, whose ranks are compiled and executed in NumPy."""

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        """As Side's, in this process: MindSpore is in one beside it."""
        recipe = sized(self.recipe)
        inputs = inputs_of(recipe, self.common.step)
        if other is not None:
            inputs = Inputs(batch=other.batch, lr=inputs.lr)
        weights = None if recipe.train.init_from is None else initial_weights(recipe).weights
        num_devices = num_devices_of(recipe)
        terminal.progress(0, num_devices, "ranks compiled")
        trace = trace_layout(
            recipe, inputs, weights, progress=lambda done, name: terminal.progress(done, num_devices, "ranks compiled")
        )
        return dataclasses.replace(trace, source=f"{self.text}, {trace.source}")


class HuggingFaceSide(Side):
    """A Hugging Face folder, computed by transformers on torch; a recipe beside it begins with its weights."""

    follows = True

    def beside(self, other: Side) -> None:
        """As Side's: a recipe is given the folder's weights."""
        self.other = other
        if isinstance(other, RecipeSide):
            other.begin_with(self.text)

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        """As Side's, in this process: no other side has MindSpore in it."""
        assert other is not None
        with terminal.working(f"computing {self.text}"):
            inputs = Inputs(batch=other.batch, lr=other.lr)
            return trace_hugging_face(Path(self.text), inputs, other.dtype, self.other.recipe)


class DumpSide(Side):
    """A dump of msprobe, whose tokens a recipe beside it computes."""

    leads = True

    def __init__(self, text: str, folder: Path) -> None:
        super().__init__(text)
        self.folder = folder

    def beside(self, other: Side) -> None:
        """As Side's: it tells where sequences end.

        Raises:
            TraceError: if it is a Hugging Face folder, which does not.
        """
        self.other = other
        self.follows = isinstance(other, TraceFolder)
        if isinstance(other, HuggingFaceSide):
            raise TraceError(
                f"{self.text}, {other.text}: a dump does not say where its sequences end. Compare each with a recipe."
            )

    def trace(self, other: Optional[Trace], terminal: Terminal) -> Trace:
        """As Side's; only read."""
        if other is not None and self.follows:
            return read_dump(self.folder, other.batch.ids.shape[1])
        return read_dump(self.folder, self.other.recipe.data.seq_len if self.other.recipe else None)


def split_settings(text: str) -> tuple[str, list[str]]:
    """A path, and the key=value pairs behind its colon."""
    match = SETTINGS.fullmatch(text)
    return (match["path"], BETWEEN.split(match["keys"])) if match else (text, [])


def side_of(text: str, common: Common) -> Side:
    """What a user means, by the files that are there; nothing is computed yet.

    Raises:
        TraceError: if it is nothing that can be traced.
        RecipeError: if it is a recipe with faults.
    """
    path = Path(text)
    if (path / INDEX_NAME).is_file():
        return TraceFolder(text)
    if dump := find_dump(path):
        return DumpSide(text, dump)
    if (path / CONFIG).is_file():
        return HuggingFaceSide(text)
    if Path(split_settings(text)[0]).is_file():
        side = RecipeSide(text, common)
        return LayoutSide(text, common) if num_devices_of(side.recipe) > 1 else side
    raise TraceError(
        f"{text}: neither a recipe nor a trace. A side of a comparison is RECIPE, RECIPE:key=value,key=value, a folder "
        "that `mindmodel debug trace` wrote, a Hugging Face folder, or a dump of msprobe."
    )


def open_sides(texts: Sequence[str], common: Common, terminal: Terminal) -> tuple[Trace, Trace]:
    """Both traces, each side computed in a process of its own.

    Raises:
        TraceError: if a side is none, if they are different models, or if neither has a batch.
        TrainingError: if MindSpore fails while one is computed.
    """
    first, second = (side_of(text, common) for text in texts)
    first.beside(second)
    second.beside(first)
    _refuse_other_models(first, second)
    if first.follows and second.follows:
        both = f"{first.text}, {second.text}"
        raise TraceError(f"{both}: neither says which tokens to compute. Give a recipe beside one.")
    if first.follows:
        later = second.trace(None, terminal)
        return first.trace(later, terminal), later
    earlier = first.trace(None, terminal)
    return earlier, second.trace(earlier if second.follows else None, terminal)


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
    said = done.stderr.strip()
    if done.returncode == 2 and (refusal := REFUSAL.search(said)):
        raise TraceError(refusal["message"])
    last = said.rpartition("\n")[2]
    raise TrainingError(f"`mindmodel {' '.join(arguments)}` failed with exit code {done.returncode}: {last}")
