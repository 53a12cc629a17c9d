"""A training run from its recipe to its last checkpoint: opens or continues the run folder, builds the step, runs it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from mindmodel.checkpoint.load import Checkpoint, newest_checkpoint
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.data.loader import TrainBatches
from mindmodel.data.prepare import Corpus, prepare
from mindmodel.errors import CheckpointError, LayoutError, RecipeError
from mindmodel.files import write_text_safely
from mindmodel.recipe.dump import describe, recipe_to_yaml
from mindmodel.recipe.load import load_run_recipe
from mindmodel.recipe.resume import resume_changes, resume_conflicts
from mindmodel.recipe.rules import resolve_degrees
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A run folder that this process owns, and where the run stands.

    Attributes:
        recipe: resolved, with the vocabulary's size.
        checkpoint: to go on from; None at the beginning.
        changes: keys that differ from the run's recipe, a line each.
    """

    folder: RunFolder
    recipe: Recipe
    corpus: Corpus
    checkpoint: Optional[Checkpoint]
    changes: tuple[str, ...]

    @property
    def step(self) -> int:
        """Steps done."""
        return self.checkpoint.index.step if self.checkpoint else 0


def one_device(recipe: Recipe) -> Recipe:
    """The recipe with its automatic degree filled in for this one process.

    Raises:
        LayoutError: if it needs more than one device.
    """
    try:
        return resolve_degrees(recipe, 1)
    except LayoutError as error:
        raise LayoutError(f"{error} `--single` runs it on one device, `--single --shrink` with small sizes.") from error


def _refuse_other_run(was: Recipe, recipe: Recipe, where: Path) -> None:
    conflicts = describe(resume_conflicts(was, recipe))
    if conflicts:
        raise CheckpointError(
            f"{where}: belongs to another run; model, data, tokenizer and seed must stay: {'; '.join(conflicts)}. "
            "Choose another runtime.output, or delete the folder to start anew."
        )


def _with_vocab_size(recipe: Recipe, tokenizer_size: int) -> Recipe:
    size = recipe.model.vocab_size or tokenizer_size
    if size < tokenizer_size:
        raise RecipeError(
            f"{recipe.name}, model.vocab_size: {size} is smaller than the tokenizer's {tokenizer_size} tokens. "
            f"Use {tokenizer_size} or more, or leave it out."
        )
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=size))


def open_run_folder(recipe: Recipe, folder: RunFolder, terminal: Terminal) -> OpenedRun:
    """Open the run folder of a recipe, which must be locked: a new run, or the one that it holds.

    Raises:
        CheckpointError: if it holds a run of another model, data, tokenizer or seed.
        DataError: if the corpus cannot be made or is damaged.
    """
    changes: tuple[str, ...] = ()
    if folder.exists():
        was = load_run_recipe(folder.recipe_file)
        _refuse_other_run(was, recipe, folder.path)
        changes = describe(resume_changes(was, recipe))
    checkpoint = newest_checkpoint(folder.checkpoints, terminal.say)
    corpus = prepare(recipe.data, folder.path, terminal.status)
    recipe = _with_vocab_size(recipe, corpus.tokenizer.vocab_size)
    write_text_safely(folder.recipe_file, recipe_to_yaml(recipe))
    return OpenedRun(folder=folder, recipe=recipe, corpus=corpus, checkpoint=checkpoint, changes=changes)
