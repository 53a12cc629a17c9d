"""A run is one folder. This file knows what is where in it, who may write to it, and how its weights are found."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, TextIO

from mindmodel.checkpoint.index import INDEX_NAME
from mindmodel.checkpoint.load import Checkpoint, newest_checkpoint, open_checkpoint
from mindmodel.checkpoint.retention import STEP_NAME
from mindmodel.errors import CheckpointError
from mindmodel.parallel.heartbeat import host_name

LIVE_NAME = "live_memory.html"
SHOWN_NAMES = 8


@dataclass(frozen=True)
class RunFolder:
    """The places in a run's folder, whether it exists or not."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe, YAML."""
        return self.path / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        """One JSON object for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "events"

    @property
    def tokenizer(self) -> Path:
        """Folder of tokenizer.json and its companions."""
        return self.path / "tokenizer"

    @property
    def data(self) -> Path:
        """Folder of the shards that were made for this run."""
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        """Folder of `step_N` folders."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Folder of the processes' logs."""
        return self.path / "logs"

    @property
    def live_memory(self) -> Path:
        """The page that a dry run writes of what is alive in a step."""
        return self.path / LIVE_NAME

    @property
    def graph(self) -> Path:
        """Folder of a compiled training step: its summary and its readable stages."""
        return self.path / "graph"

    @property
    def profile(self) -> Path:
        """Folder of a profiled training step: numbers, a page and a trace."""
        return self.path / "profile"

    @property
    def trace(self) -> Path:
        """Folder of a traced training step."""
        return self.path / "trace"

    @property
    def huggingface(self) -> Path:
        """Folder of the original config.json and generation_config.json of an imported model."""
        return self.path / "huggingface"

    def exists(self) -> bool:
        """Whether a run is here."""
        return self.recipe_file.is_file()

    def create(self) -> None:
        """Make the folder, unless it is there.

        Raises:
            CheckpointError: if it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._open_lock().close()
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: this run folder cannot be written: {error.strerror}. Choose another runtime.output."
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes to the run, until the block ends or the process does. The folder must exist.

        Raises:
            CheckpointError: if another process is.
        """
        with self._open_lock() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise CheckpointError(
                    f"{self.path}: is being written by process {file.read().strip() or 'unknown'}. "
                    "Wait until it ends, stop it, or choose another runtime.output."
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()} on {host_name()}\n")
            file.flush()
            yield

    def _open_lock(self) -> TextIO:
        return open(self.path / ".lock", "a+", encoding="utf-8")


def open_run(path: Path) -> RunFolder:
    """The run in a folder.

    Raises:
        CheckpointError: if there is none; the message says what is there and what would work.
    """
    run = RunFolder(path)
    if run.exists():
        return run
    if not run.path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder. Give a run folder, as `mindmodel train` prints it.")
    if (run.path / INDEX_NAME).is_file():
        raise CheckpointError(f"{path}: this is a checkpoint, not a run. Its run is {_run_of(run.path)}.")
    if (run.path / "config.json").is_file():
        raise CheckpointError(
            f"{path}: this is a Hugging Face folder, not a run. `mindmodel convert from-hf {path} RUN` makes one of it."
        )
    names = sorted(entry.name for entry in run.path.iterdir())
    found = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "") or "nothing"
    raise CheckpointError(
        f"{path}: holds no recipe.yaml, so it is no run; found {found}. "
        "Give a run folder, as `mindmodel train` prints it."
    )


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def resolve_weights(path: Path, say: Callable[[str], None] = _warn) -> tuple[RunFolder, Checkpoint]:
    """The run and the checkpoint that a path means: a run (its newest whole checkpoint) or one of its `step_N` folders.

    Args:
        path: `RUN` or `RUN/checkpoints/step_N`.
        say: called with one line for each damaged checkpoint of a run, which is passed over.

    Raises:
        CheckpointError: if there is no such run or no whole checkpoint, or the one asked for is damaged.
    """
    checkpoint = resolve_checkpoint(path, say)
    return open_run(_run_of(path) if is_checkpoint(path) else path), checkpoint


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of a checkpoint, even of one that is not there, rather than of a run."""
    return (path / INDEX_NAME).is_file() or STEP_NAME.fullmatch(path.name) is not None


def resolve_checkpoint(path: Path, say: Callable[[str], None] = _warn, verify: bool = True) -> Checkpoint:
    """The checkpoint that a path means, as resolve_weights; a checkpoint may stand outside of a run.

    Args:
        verify: as open_checkpoint.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    if is_checkpoint(path):
        return open_checkpoint(path, verify)
    run = open_run(path)
    newest = newest_checkpoint(run.checkpoints, say, verify)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints}: there is no whole checkpoint. Train the run until it saves one.")
    return newest


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.resolve().parent.parent
