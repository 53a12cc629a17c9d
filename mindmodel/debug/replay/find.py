"""Steps of a run that can be made again, and from which checkpoint; MindSpore is not loaded to find out.

Nothing is locked and nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from mindmodel.checkpoint.index import INDEX_NAME
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.retention import list_checkpoints
from mindmodel.checkpoint.run_folder import RunFolder, open_run
from mindmodel.errors import CheckpointError, LayoutError, RecipeError
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.dump import describe
from mindmodel.recipe.load import load_run_recipe, recipe_from_dict, with_overrides
from mindmodel.recipe.resume import changes_numbers, resume_conflicts
from mindmodel.recipe.schema import Recipe
from mindmodel.recipe.shrink import single as on_one_device
from mindmodel.terminal import Terminal
from mindmodel.train.metrics import read_metrics
from mindmodel.train.run import OpenedRun, for_this_machine, reopen_run


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps of a run that were made with the same recipe.

    Attributes:
        start: steps done before the first of them.
        end: the last of them; None: the run may go on with them.
        changes: what the recipe has other than that of the stretch before, a line each.
    """

    start: int
    end: Optional[int]
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Steps that can be made again.

    Attributes:
        opened: the run at the checkpoint to begin with; a recipe that was changed for the replay is in it.
        stretch: of the first step.
        last: the last step that the run is known to have made, in whichever stretch.
        rows: of metrics.jsonl.
    """

    opened: OpenedRun
    stretch: Stretch
    last: int
    rows: Sequence[Mapping[str, Any]]


def stretches(rows: Sequence[Mapping[str, Any]]) -> list[Stretch]:
    """The stretches of a run, in order, from the rows of its metrics.jsonl; what was made again counts once."""
    begun: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    for row in rows:
        if "from_step" in row:
            begun = [(start, changes) for start, changes in begun if start < row["from_step"] or start == 0]
            changes = tuple(line for line in row["changes"] if changes_numbers(line.partition(":")[0]))
            begun += [(row["from_step"], changes)] if changes else []
    ends = [start for start, _ in begun[1:]] + [None]
    return [Stretch(start=start, end=end, changes=changes) for (start, changes), end in zip(begun, ends)]


def find_replay(
    path: Path, step: int, terminal: Terminal, *, overrides: Sequence[str] = (), single: bool = False
) -> Replay:
    """A run at its newest whole checkpoint at or before a step; at its beginning when there is none.

    Args:
        path: the run's folder.
        step: number of steps done; 0 is the beginning.
        overrides: key=value pairs, put on top of the recipe that the run had there.
        single: compute in one process what several ranks have computed.

    Raises:
        CheckpointError: if it is no run, has not made the step, or the recipe that it had there is not kept.
        DataError: if its corpus is gone, damaged or another one.
        LayoutError: if several ranks have made it and `single` is not set.
        RecipeError: if an override makes it another run, or the model is larger than this machine.
    """
    folder = open_run(path)
    rows, last = read_metrics(folder.metrics_file), load_run_recipe(folder.recipe_file)
    made = _steps_made(folder, rows)
    _refuse_beyond(folder, last, made, step)
    stretch = [each for each in stretches(rows) if each.start <= step][-1]
    recipe = _recipe_of(folder, last, stretch)
    _refuse_imported(folder, recipe)
    recipe = _changed(_on_this_machine(folder, recipe, single), overrides, folder)
    opened = reopen_run(recipe, folder, step, terminal)
    _refuse_other_recipe(opened, stretch, step)
    return Replay(opened=opened, stretch=stretch, last=made, rows=rows)


def _steps_made(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> int:
    """As far as the run has written it down."""
    return max([0, *(row.get("step", 0) for row in rows), *list_checkpoints(folder.checkpoints)])


def _refuse_beyond(folder: RunFolder, recipe: Recipe, made: int, step: int) -> None:
    """Between two rows of metrics.jsonl the run may have made steps that nothing tells of."""
    if step > min(recipe.train.steps, made + recipe.log.every - 1):
        raise CheckpointError(
            f"{folder.path}: has made {made} of {recipe.train.steps} steps; step {step} is beyond. "
            f"Use a step up to {made}."
        )


def _refuse_imported(folder: RunFolder, recipe: Recipe) -> None:
    if recipe.data.source is None and recipe.data.path is None:
        raise CheckpointError(
            f"{folder.path}: holds an imported model, not a training run: there is no step to make again. Give a run "
            "folder, as `mindmodel train` prints it."
        )


def _recipe_of(folder: RunFolder, last: Recipe, stretch: Stretch) -> Recipe:
    """The last stretch's is the run's recipe; another's stands in the checkpoints that were saved in it."""
    if stretch.end is None:
        return last
    for step in list_checkpoints(folder.checkpoints):
        if stretch.start < step <= stretch.end:
            index = open_checkpoint(folder.checkpoints / f"step_{step}", verify=False).index
            return recipe_from_dict(index.recipe, folder.checkpoints / f"step_{step}" / INDEX_NAME)
    raise CheckpointError(
        f"{folder.path}: steps {stretch.start + 1} to {stretch.end} were made with another recipe than recipe.yaml, "
        f"and no checkpoint of them is kept, which would hold it. Use a step from {stretch.end} on."
    )


def _on_this_machine(folder: RunFolder, recipe: Recipe, single: bool) -> Recipe:
    if single:
        recipe, _ = on_one_device(recipe)
    ranks = mesh_of(recipe.parallel).num_devices
    if ranks > 1:
        raise LayoutError(
            f"{folder.path}: {ranks} ranks have trained this run, and its steps are made again in one process. "
            "`--single` does that; sums are in another order then, and losses equal to rounding."
        )
    return for_this_machine(recipe)


def _changed(recipe: Recipe, overrides: Sequence[str], folder: RunFolder) -> Recipe:
    changed = with_overrides(recipe, overrides, folder.recipe_file)
    if conflicts := describe(resume_conflicts(recipe, changed)):
        raise RecipeError(
            f"command line: {'; '.join(conflicts)}: a step of another run. Model, data, tokenizer and seed must stay."
        )
    return changed


def _refuse_other_recipe(opened: OpenedRun, stretch: Stretch, step: int) -> None:
    """From the checkpoint to the step there must be one recipe."""
    start = opened.position.step
    if start < stretch.start:
        raise CheckpointError(
            f"{opened.folder.path}: the newest whole checkpoint at or before step {step} is that of step {start}, and "
            f"from step {stretch.start} on the run had another recipe: {'; '.join(stretch.changes)}. Use a step below "
            f"{stretch.start}, or one from the next checkpoint on."
        )
