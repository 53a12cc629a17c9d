"""What a traced step is given: a batch and a learning rate. Imports no mindspore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.data.loader import IGNORED, Batch, TrainBatches
from mindmodel.data.tokens import TokenFile
from mindmodel.errors import DataError
from mindmodel.recipe.schema import Recipe
from mindmodel.train.schedule import learning_rate


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Of one step: a global batch that is not filled up, and the learning rate."""

    batch: Batch
    lr: float


def inputs_of(recipe: Recipe, step: Optional[int] = None) -> Inputs:
    """The same for every way to compute a recipe.

    Args:
        recipe: with `model.vocab_size` filled in.
        step: counted from 1, the tokens that the run trains on in it; default: random tokens, which need no corpus.

    Raises:
        DataError: if a step is named and the run has no corpus.
    """
    lr = learning_rate(recipe.optim, recipe.train.steps, step or 1)
    return Inputs(batch=_random_batch(recipe) if step is None else _batch_of(recipe, step), lr=lr)


def filled_up(batch: Batch, rows: int) -> Batch:
    """With as many sequences as are computed; those that are added do not count."""
    missing = ((0, rows - len(batch.ids)), (0, 0))
    return Batch(ids=np.pad(batch.ids, missing), labels=np.pad(batch.labels, missing, constant_values=IGNORED))


def _random_batch(recipe: Recipe) -> Batch:
    """Drawn from the recipe's seed; labels are the tokens one further, as in a corpus."""
    random = np.random.default_rng(recipe.train.seed)
    shape = recipe.sequences_per_step, recipe.data.seq_len + 1
    tokens = random.integers(0, int(recipe.model.vocab_size or 0), shape, dtype=np.int32)
    return Batch(ids=tokens[:, :-1].copy(), labels=tokens[:, 1:].copy())


def _batch_of(recipe: Recipe, step: int) -> Batch:
    folder = Path(recipe.data.path) if recipe.data.path is not None else RunFolder(Path(recipe.output)).data
    if not (folder / "train.idx").is_file():
        raise DataError(
            f"{folder}: there is no corpus, so the tokens of step {step} are not known. Train first, or leave the step "
            "out: random tokens are taken then."
        )
    count = recipe.sequences_per_step
    batches = TrainBatches(TokenFile(folder / "train"), recipe.data.seq_len, recipe.train.seed)
    return batches.batch((step - 1) * count, count)
