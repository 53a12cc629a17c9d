"""A run in memory, which makes one optimizer step after another; nothing is written."""

from __future__ import annotations

import shlex
from contextlib import nullcontext

from mindspore import Tensor

from mindmodel.data.loader import Batch
from mindmodel.errors import NotFiniteError
from mindmodel.parallel.heartbeat import heartbeat_of_this_process
from mindmodel.parallel.runtime import Runtime
from mindmodel.terminal import Terminal
from mindmodel.train.build import Built, build, build_without_numbers, is_partitioned
from mindmodel.train.norms import norm_columns, own_squares, parts_of
from mindmodel.train.run import OpenedRun
from mindmodel.train.schedule import learning_rate
from mindmodel.train.slow_ranks import SlowRanks
from mindmodel.train.state import hold, hold_first


class Stepping:
    """Network, optimizer and step graph of a run, at the step of its checkpoint.

    Attributes:
        step: steps done.
        built: the Cells.
    """

    def __init__(self, opened: OpenedRun, runtime: Runtime, terminal: Terminal) -> None:
        self.opened, self.runtime, self.terminal = opened, runtime, terminal
        self.recipe, self.ranks = opened.recipe, runtime.ranks
        self.step = self.first_step = opened.position.step
        self.heartbeat, self.slow_ranks = heartbeat_of_this_process(), SlowRanks(runtime)
        self.built = self._build()
        self.decoder, self.optimizer = self.built.decoder, self.built.optimizer
        self._norm_outputs: tuple[float, tuple[Tensor, ...]] = 0.0, ()
        self._fill()

    def _build(self) -> Built:
        """A partitioned step is compiled before it has a weight: no rank ever holds more than its slices."""
        if not is_partitioned(self.recipe.parallel):
            return build(self.recipe, self.ranks.rank)
        built = build_without_numbers(self.recipe, self.ranks.rank)
        self.heartbeat.beat("compiling", self.step)
        # is a kept graph cut as a new one? No chip has said so
        with self.runtime.compiling("the training graph", self.terminal, kept=False):
            built.whole.compile(*built.example(self.recipe))
        return built

    def _fill(self) -> None:
        """This rank's weights and optimizer state: the checkpoint's, those of train.init_from, or fresh ones."""
        checkpoint, initial = self.opened.position.checkpoint, self.opened.initial
        recipe, rank = self.recipe, self.ranks.rank
        if checkpoint is not None:
            hold(self.built, recipe, rank, checkpoint.weights(), checkpoint.optimizer(), str(checkpoint.path))
            checkpoint.release()
        else:
            hold_first(self.built, recipe, rank, initial.weights if initial else None)

    def batch_of(self, step: int) -> Batch:
        """This rank's share of the samples of a step, counted from 1."""
        count = self.recipe.sequences_per_step
        return self.opened.batches.batch((step - 1) * count, count, self.built.share, self.built.rows)

    def learning_rate_of(self, step: int) -> float:
        """Of a step, counted from 1."""
        return learning_rate(self.recipe.optim, self.recipe.train.steps, step)

    def one_step(self) -> tuple[float, float, float]:
        """The next optimizer step: its loss, gradient norm before clipping and learning rate.

        Raises:
            NotFiniteError: if loss or gradients are not finite and train.check_finite is stop.
        """
        step, lr = self.step + 1, self.learning_rate_of(self.step + 1)
        first = self.step == self.first_step and not self.built.is_partitioned
        self.heartbeat.beat("data", step)
        with self.slow_ranks.reading():
            batch = self.batch_of(step)
        self.heartbeat.beat("compiling" if first else "step", step)
        compiling = self.runtime.compiling("the training graph", self.terminal, kept=True) if first else nullcontext()
        with compiling:
            outputs = self.built.run(batch, lr)
            loss, norm, applied = (output.asnumpy().item() for output in outputs[:3])
        self._norm_outputs = norm, outputs[3:]
        if not applied:
            self._not_finite(step, loss, norm)
        self.step = step
        return loss, norm, lr

    def norms(self) -> dict[str, float]:
        """Of the step before, by column of the metrics; what log.norms_every asks for. All ranks must call it."""
        grad_norm, outputs = self._norm_outputs
        parts = parts_of(self.recipe.model.num_layers)
        own = own_squares([output.asnumpy() for output in outputs], self.built.held(), parts)
        squares = self.ranks.gather(*own.ravel()).sum(axis=0).reshape(own.shape)
        num_tokens = self.recipe.sequences_per_step * self.recipe.data.seq_len
        return norm_columns(squares, parts, grad_norm, num_tokens)

    def _not_finite(self, step: int, loss: float, norm: float) -> None:
        found = f"step {step}: loss {loss}, gradient norm {norm}: not finite"
        if self.recipe.train.check_finite == "stop":
            run = shlex.quote(str(self.opened.folder.path))
            raise NotFiniteError(
                f"{found}. The weights were not touched. Use a smaller optim.peak_lr, or train.check_finite=skip to "
                f"pass over such steps. `mindmodel debug nan {run}` names the first tensor that is not finite.",
                loss,
                norm,
            )
        self.terminal.say(f"{found}; the weights stay as they were.")
