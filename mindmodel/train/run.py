"""A training run before MindSpore is loaded: its folder, where it stands, its corpus, and whether it can be at all."""

from __future__ import annotations

import errno
import hashlib
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Optional

import numpy as np

from mindmodel.build_cache import source_digest
from mindmodel.checkpoint.index import INDEX_NAME
from mindmodel.checkpoint.load import Checkpoint, newest_checkpoint, open_checkpoint
from mindmodel.checkpoint.retention import list_checkpoints
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.data.loader import TrainBatches
from mindmodel.data.prepare import Corpus, prepare, reopen
from mindmodel.errors import CheckpointError, LaunchError, LayoutError, RecipeError
from mindmodel.fleet.chips import DEFAULT_CHIP, find_chip
from mindmodel.fleet.memory import estimate_memory
from mindmodel.machine import memory, runs_on_ascend
from mindmodel.parallel.launch import refuse_cut_weights, refuse_layout_without_graph
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.dump import describe, recipe_to_dict
from mindmodel.recipe.estimate import estimate
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.resume import resume_changes, resume_conflicts
from mindmodel.recipe.rules import resolve_degrees
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal, data_size
from mindmodel.train.init_from import Initial, initial_weights
from mindmodel.train.metrics import read_metrics

if TYPE_CHECKING:
    from mindmodel.parallel.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands.

    Attributes:
        checkpoint: to go on from; None at the beginning.
        changes: keys that differ from the recipe that the checkpoint was made with, a line each.
    """

    checkpoint: Optional[Checkpoint]
    changes: tuple[str, ...]

    @property
    def step(self) -> int:
        """Steps done."""
        return self.checkpoint.index.step if self.checkpoint else 0


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A run that can start.

    Attributes:
        recipe: resolved, with the vocabulary's size.
        initial: weights to begin with, of train.init_from; None when there is a checkpoint or they are to be fresh.
    """

    folder: RunFolder
    recipe: Recipe
    corpus: Corpus
    batches: TrainBatches
    position: Position
    initial: Optional[Initial]


def for_this_machine(recipe: Recipe, num_ranks: int = 1) -> Recipe:
    """The recipe with its automatic degree filled in for the processes of this job.

    Raises:
        LayoutError: if it needs another number of devices, or they cannot train it.
    """
    try:
        recipe = resolve_degrees(recipe, num_ranks)
    except LayoutError as error:
        works = f"`mindmodel launch {recipe.name}.yaml` starts as many processes as it needs; `--single` runs it on one"
        raise LayoutError(f"{error} {works} device, `--single --shrink` with small sizes.") from error
    refuse_cut_weights(recipe)
    refuse_layout_without_graph(recipe)
    return recipe


@contextmanager
def owned(folder: RunFolder) -> Iterator[None]:
    """Make the run's folder and be its only writer. When the block fails and left it empty, it is removed again.

    Raises:
        CheckpointError: if the folder cannot be written, as on a full disk, or another process writes to it.
    """
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    folder.create()
    with folder.lock(), _removed_when_empty(made), _full_disk_named(folder.path):
        _remove_leftovers(folder.path)
        yield


@contextmanager
def _removed_when_empty(made: list[Path]) -> Iterator[None]:
    """When the block fails, remove these folders, the run's first, unless that holds more than its lock."""
    try:
        yield
    except BaseException:
        if made and [path.name for path in made[0].iterdir()] == [".lock"]:
            (made[0] / ".lock").unlink()
            for path in made:
                path.rmdir()
        raise


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """The system's own error does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"{path}: could not be written: {error.strerror}; {shutil.disk_usage(path).free:,} bytes are free. Make "
            "room or choose another runtime.output, then start again."
        ) from error


def _remove_leftovers(folder: Path) -> None:
    """Files that a killed process left half-written, under their temporary names."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            path.unlink()


def find_position(recipe: Recipe, folder: RunFolder, terminal: Terminal) -> Position:
    """Where the run in a folder stands; at the beginning if it has saved nothing. The folder must be owned.

    Raises:
        CheckpointError: if no checkpoint is whole, or the run is one of another model, data, tokenizer or seed.
    """
    checkpoint = newest_checkpoint(folder.checkpoints, terminal.say)
    return _position(recipe, folder, checkpoint)


def join_position(recipe: Recipe, folder: RunFolder, step: int) -> Position:
    """Of a rank that is not the first: the position at the step that the first has found and compared bit by bit.

    Args:
        step: 0 at the beginning.

    Raises:
        CheckpointError: as find_position.
    """
    checkpoint = open_checkpoint(folder.checkpoints / f"step_{step}", verify=False) if step else None
    return _position(recipe, folder, checkpoint)


def _position(recipe: Recipe, folder: RunFolder, checkpoint: Optional[Checkpoint]) -> Position:
    if checkpoint is None:
        if damaged := list_checkpoints(folder.checkpoints):
            names = ", ".join(f"step_{step}" for step in damaged)
            raise CheckpointError(
                f"{folder.checkpoints}: no checkpoint is whole ({names}), so the run cannot go on. Restore one of "
                "them, or delete this folder to begin with step 0 again."
            )
        return Position(checkpoint=None, changes=())
    was = recipe_from_dict(checkpoint.index.recipe, checkpoint.path / INDEX_NAME)
    _refuse_other_run(was, recipe, folder.path)
    return Position(checkpoint=checkpoint, changes=describe(resume_changes(was, recipe)))


def _refuse_other_run(was: Recipe, recipe: Recipe, where: Path) -> None:
    if was.data.source is None and was.data.path is None:
        raise CheckpointError(
            f"{where}: holds an imported model, not a training run. Train from it with train.init_from={where} and "
            "another runtime.output."
        )
    conflicts = describe(resume_conflicts(was, recipe))
    if conflicts:
        raise CheckpointError(
            f"{where}: belongs to another run; model, data, tokenizer and seed must stay: {'; '.join(conflicts)}. "
            "Choose another runtime.output, or delete the folder to start anew."
        )


def is_finished(recipe: Recipe, folder: RunFolder, position: Position, terminal: Terminal) -> bool:
    """Whether a run has made all its steps, which is said then."""
    if position.step < recipe.train.steps:
        return False
    terminal.say(f"{folder.path}: finished, {position.step} steps. train.steps={2 * position.step} would go on.")
    return True


def open_run(recipe: Recipe, folder: RunFolder, position: Position, terminal: Terminal) -> OpenedRun:
    """Make or verify the corpus, and check what can be checked before MindSpore is loaded. The folder must be owned.

    Raises:
        CheckpointError: if metrics.jsonl is damaged, or train.init_from does not fit.
        ConversionError: if train.init_from is a Hugging Face folder that cannot be read.
        DataError: if the corpus cannot be made, is damaged or too small.
        RecipeError: if the vocabulary is smaller than the tokenizer's, or the model larger than this machine.
    """
    read_metrics(folder.metrics_file)
    _refuse_too_large(recipe)
    return _opened(recipe, folder, position, prepare(recipe.data, folder.path, terminal.status))


def reopen_run(recipe: Recipe, folder: RunFolder, step: int, terminal: Terminal) -> OpenedRun:
    """A run at its newest whole checkpoint at or before a step, or at its beginning. Nothing is locked or written.

    Raises:
        as open_run; DataError too if the corpus is gone.
    """
    _refuse_too_large(recipe)
    corpus = reopen(recipe.data, folder.path, terminal.status)
    checkpoint = newest_checkpoint(folder.checkpoints, terminal.say, last=step)
    return _opened(recipe, folder, Position(checkpoint=checkpoint, changes=()), corpus)


def _opened(recipe: Recipe, folder: RunFolder, position: Position, corpus: Corpus) -> OpenedRun:
    recipe = _with_vocab_size(recipe, corpus.tokenizer.vocab_size)
    _refuse_too_large(recipe)
    fresh = position.checkpoint is None and recipe.train.init_from is not None
    return OpenedRun(
        folder=folder,
        recipe=recipe,
        corpus=corpus,
        batches=TrainBatches(corpus.train, recipe.data.seq_len, recipe.train.seed),
        position=position,
        initial=initial_weights(recipe) if fresh else None,
    )


def refuse_other_ranks_run(opened: OpenedRun, ranks: "Ranks") -> None:
    """All ranks of a job must train the same run from the same place with the same code.

    Raises:
        LaunchError: if they do not; on every rank, with the same text.
    """
    kinds = "another recipe", "other sources of mindmodel", "another corpus", "a run at another step"
    keys = recipe_to_dict(opened.recipe)
    del keys["runtime"]
    corpus = f"{opened.corpus.train.num_tokens} {opened.corpus.heldout.num_tokens}"
    mine = (_number(repr(keys)), _number(source_digest()), _number(corpus), float(opened.position.step))
    rows = ranks.gather(*mine)
    differing = [
        f"{kind} on rank {', '.join(map(str, np.flatnonzero(column != column[0])))}"
        for kind, column in zip(kinds, rows.T) if (column != column[0]).any()
    ]
    if differing:
        raise LaunchError(
            f"{opened.folder.path}: the ranks do not train the same run; compared with rank 0 there is "
            f"{'; '.join(differing)}. Give all nodes the same recipe, code and folders."
        )


def _number(text: str) -> float:
    """A text as a number that a float holds exactly; two texts have the same one with a chance of 2^-48."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def _with_vocab_size(recipe: Recipe, tokenizer_size: int) -> Recipe:
    size = recipe.model.vocab_size or tokenizer_size
    if size < tokenizer_size:
        raise RecipeError(
            f"recipe '{recipe.name}', model.vocab_size: {size} is smaller than the tokenizer's {tokenizer_size} "
            f"tokens. Use {tokenizer_size} or more, or leave it out."
        )
    return recipe.with_keys({"model.vocab_size": size})


def _refuse_too_large(recipe: Recipe) -> None:
    """On Ascend a rank must fit into a chip; on CPU what is held, activations not counted, into main memory; as soon as
    the sizes are known."""
    if recipe.model.vocab_size is None:
        return
    if runs_on_ascend(recipe.runtime.device):
        _refuse_too_large_for_chip(recipe)
        return
    need, machine = estimate(recipe, recipe.model.vocab_size), memory()
    needed = need.state_bytes + need.logit_bytes
    if machine is not None and needed > machine.total_bytes:
        raise RecipeError(
            f"recipe '{recipe.name}': weights, gradients, moments and the logits of a micro-batch are "
            f"{data_size(needed)}; this machine has {data_size(machine.total_bytes)}. Use a smaller model, more "
            "parallel.micro_batches or fewer train.tokens_per_step; --shrink keeps the structure."
        )


def _refuse_too_large_for_chip(recipe: Recipe) -> None:
    """Slices, gradients, moments and activations of the ranks of a stage; all stages are looked at."""
    chip, mesh = find_chip(DEFAULT_CHIP), mesh_of(recipe.parallel)
    needs = {rank: estimate_memory(recipe, rank).total for rank in (mesh.rank(pp=stage) for stage in range(mesh.pp))}
    rank = max(needs, key=lambda rank: needs[rank])
    if needs[rank] > chip.hbm_bytes:
        raise RecipeError(
            f"recipe '{recipe.name}': rank {rank} needs {data_size(needs[rank])} at the peak of a step; a chip "
            f"({chip.name}) has {data_size(chip.hbm_bytes)}. Use more parallel.tp or pp, shard_optimizer, "
            "recompute or micro_batches: `mindmodel dryrun` tells what each needs."
        )
