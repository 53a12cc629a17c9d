"""Where a run's numbers first stopped being finite: the step is made again from a checkpoint, and then looked into."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Optional, Sequence

from mindmodel.checkpoint.run_folder import open_run
from mindmodel.debug.graph.stages import saved_stages
from mindmodel.debug.in_memory import in_memory
from mindmodel.debug.replay.find import find_replay
from mindmodel.errors import CheckpointError, NotFiniteError
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.load import load_run_recipe
from mindmodel.terminal import Terminal
from mindmodel.train.metrics import read_metrics

if TYPE_CHECKING:
    from mindmodel.debug.nan.in_step import Finding
    from mindmodel.train.stepping import Stepping


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        step: that was looked into: the one asked for, or one before it that is not finite already.
        start: steps done at the checkpoint from which steps were made again; 0 is the beginning of the run.
        loss, grad_norm: of the step.
        first_sample: position of the step's first sequence in the run's order.
        finding: None if all is finite, or where only the step as a whole is not.
    """

    run: str
    step: int
    start: int
    loss: float
    grad_norm: float
    first_sample: int
    finding: Optional[Finding]

    @property
    def is_finite(self) -> bool:
        """Whether nothing of the step is not."""
        return self.finding is None and math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def step_to_look_into(rows: Sequence[Mapping[str, Any]], where: Path) -> int:
    """The first of the last steps in a row that were not finite, else the last step.

    Args:
        rows: of metrics.jsonl, where a number that is not finite is null.
        where: the run, for the message.

    Raises:
        CheckpointError: if no step is written down.
    """
    finite = [(row["step"], row["loss"] is not None and row["grad_norm"] is not None) for row in rows if "loss" in row]
    if not finite:
        raise CheckpointError(f"{where}: no step is written down in metrics.jsonl. Name one: --step N.")
    while len(finite) > 1 and finite[-1][1] and not all(good for _, good in finite):
        finite.pop()
    while len(finite) > 1 and not finite[-1][1] and not finite[-2][1]:
        finite.pop()
    return finite[-1][0]


def find_nan(path: Path, step: Optional[int], terminal: Terminal) -> Report:
    """Make a step of a run again and look for the first tensor that is not finite.

    Args:
        path: the run's folder; nothing is written to it.
        step: counted from 1; default as step_to_look_into.

    Raises:
        CheckpointError, DataError, LayoutError, RecipeError: as find_replay, or if the run has no such step.
        GraphError: if the step's gradients do not compile with all results as outputs.
    """
    folder = open_run(path)
    recipe = load_run_recipe(folder.recipe_file)
    step = step or step_to_look_into(read_metrics(folder.metrics_file), folder.path)
    if step > recipe.train.steps:
        raise CheckpointError(f"{path}: step {step} is beyond the run: it has {recipe.train.steps} steps.")
    if (ranks := mesh_of(recipe.parallel).num_devices) > 1:
        terminal.say(
            f"{ranks} ranks have trained this run; one process makes their steps again, with the same samples: sums "
            "are in another order, so numbers are the same but for rounding."
        )
    # without the check a bad step would be applied, and the state before it be lost; finite steps are the same bitwise
    changed = ["train.check_finite=stop"] if recipe.train.check_finite == "none" else []
    if recipe.runtime.mode != "graph":
        terminal.say("the run was made in PyNative mode; its steps are made in graph mode, the same but for rounding.")
        changed.append("runtime.mode=graph")
    replay = find_replay(path, step - 1, terminal, overrides=changed, single=ranks > 1)
    with tempfile.TemporaryDirectory(prefix="mindmodel-nan-") as stages, saved_stages(Path(stages)):
        return _looked_into(in_memory(replay.opened, terminal), step, terminal, Path(stages))


def _looked_into(stepping: Stepping, step: int, terminal: Terminal, stages: Path) -> Report:
    from mindmodel.debug.nan.in_step import Search, first_bad_parameter

    start, recipe = stepping.step, stepping.recipe
    state = [*stepping.decoder.trainable_params(), *stepping.optimizer.state().values()]
    finding = first_bad_parameter(state, "read")
    number, loss, norm = _make(stepping, step, terminal)
    finding = finding or first_bad_parameter(state, "update")
    if finding is None and not (math.isfinite(loss) and math.isfinite(norm)):
        with terminal.working("computing every result of the step"):
            search = Search(stepping.built, recipe, stepping.runtime, stages)
            finding = search.first(stepping.batch_of(number))
    return Report(
        run=str(stepping.opened.folder.path),
        step=number,
        start=start,
        loss=loss,
        grad_norm=norm,
        first_sample=(number - 1) * recipe.sequences_per_step,
        finding=finding,
    )


def _make(stepping: Stepping, step: int, terminal: Terminal) -> tuple[int, float, float]:
    """Make steps up to this one, or to the first whose numbers would end the run: that one, its loss and norm."""
    first = stepping.step
    while True:
        number = stepping.step + 1
        try:
            loss, norm, _ = stepping.one_step()
        except NotFiniteError as error:
            return number, error.loss, error.norm
        if number == step:
            return number, loss, norm
        terminal.progress(number - first, step - first, f"step {number}  loss {loss:.3f}")
