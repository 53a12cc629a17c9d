"""A run's checkpoints: what goes into one, when it is written, and when that is said."""

from __future__ import annotations

import platform
import secrets
import time
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Iterator, Union

import numpy as np

import mindmodel
from mindmodel.checkpoint.background import BackgroundWriter, HostMemory
from mindmodel.checkpoint.layout import optimizer_placements, weight_placements
from mindmodel.checkpoint.part import Crew
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.save import checkpoint_writer
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.schema import AXES
from mindmodel.train.metrics import Metrics, NoMetrics, read_metrics
from mindmodel.train.state import tensors_of

if TYPE_CHECKING:
    from mindmodel.train.loop import Training

ATTEMPT_BITS = 48


def versions() -> dict[str, str]:
    """Of what writes a checkpoint."""
    return {
        "mindmodel": mindmodel.__version__,
        "mindspore": version("mindspore"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def heldout_losses(folder: RunFolder, step: int) -> dict[int, float]:
    """By step, up to one, as the run has written them down."""
    rows = read_metrics(folder.metrics_file)
    return {row["step"]: row["eval_loss"] for row in rows if row.get("eval_loss") is not None and row["step"] <= step}


class Saving:
    """Writes a run's checkpoints beside its steps; every rank writes its part, and every rank must make the same calls.

    The loop is held up while the numbers are copied, and while the checkpoint before is not yet written.
    """

    def __init__(self, training: "Training") -> None:
        self._training, recipe = training, training.recipe
        self._memory, self._writer = HostMemory(), BackgroundWriter()
        self._saved_step = training.step if training.opened.position.checkpoint else None
        self._losses = heldout_losses(training.opened.folder, training.step) if recipe.checkpoint.keep_best else {}
        weights = weight_placements(recipe)
        # a float holds these bits exactly
        attempt = int(training.ranks.gather(float(secrets.randbits(ATTEMPT_BITS)))[0, 0])
        self._crew = Crew(
            rank=training.ranks.rank,
            mesh=mesh_of(recipe.parallel),
            placements={**weights, **optimizer_placements(weights)},
            attempt=f"{attempt:x}",
        )

    def save(self, metrics: Union[Metrics, NoMetrics]) -> None:
        """Begin a checkpoint of this step, unless there is one; how long that held up the loop is a row of the metrics.

        Raises:
            CheckpointError: if the one before could not be written.
        """
        training, step, start = self._training, self._training.step, time.perf_counter()
        if self._saved_step == step:
            return
        self._saved_step = step
        training.heartbeat.beat("saving", step)
        self._writer.wait()
        recipe, samples = training.recipe, step * training.recipe.sequences_per_step
        write = checkpoint_writer(
            training.opened.folder.checkpoints,
            step=step,
            samples=samples,
            tokens=samples * recipe.data.seq_len,
            weights=tensors_of(training.optimizer.parameters),
            optimizer=tensors_of(training.optimizer.state().values()),
            recipe=recipe_to_dict(recipe),
            versions=versions(),
            random={"seed": recipe.train.seed, "samples": samples},
            layout={axis: mesh_of(recipe.parallel).degree(axis) for axis in AXES},
            keep=recipe.checkpoint.keep,
            keep_every=recipe.checkpoint.keep_every,
            losses=dict(self._losses),
            crew=self._crew,
            memory=self._memory,
        )
        self._writer.start(write)
        metrics.write(step, {"save_blocked_s": time.perf_counter() - start})

    def note(self, heldout_loss: float) -> None:
        """The held-out loss of this step, which decides which checkpoint is the best."""
        if self._training.recipe.checkpoint.keep_best:
            self._losses[self._training.step] = heldout_loss

    def report(self) -> None:
        """Say which checkpoints have become whole; the first rank knows.

        Raises:
            CheckpointError: if one could not be written.
        """
        for path in self._writer.finished():
            if self._training.ranks.is_first:
                self._training.terminal.say(f"step {path.name.removeprefix('step_')}: saved {path}")

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """A block at whose end what was begun is written, unless the user is in a hurry."""
        try:
            yield
        except Exception:
            self._writer.settle()
            raise
        self.complete()

    def complete(self) -> None:
        """Wait until what was begun is written, and say so.

        Raises:
            CheckpointError: if it could not be written.
        """
        self._writer.wait()
        self.report()
