"""The training loop: one step after another, with evaluation, checkpoints and an orderly end."""

from __future__ import annotations

import math
import time
from typing import Optional, Union

from mindmodel.data.loader import heldout_batches
from mindmodel.errors import CheckpointError, NotFiniteError
from mindmodel.parallel.runtime import Runtime, peak_flops
from mindmodel.recipe.estimate import FLOP_FORMULA, estimate
from mindmodel.terminal import Terminal, duration
from mindmodel.train.evaluate import Evaluation, compile_evaluation, evaluate, no_evaluation
from mindmodel.train.init_from import keep_origin
from mindmodel.train.metrics import Metrics, NoMetrics, Utilisation
from mindmodel.train.run import OpenedRun
from mindmodel.train.saving import Saving
from mindmodel.train.stepping import Stepping
from mindmodel.train.stopping import GO_ON, Stopper, agreed


class Training(Stepping):
    """A run in memory that trains: its steps, and what is written of them."""

    def __init__(self, opened: OpenedRun, runtime: Runtime, terminal: Terminal) -> None:
        super().__init__(opened, runtime, terminal)
        recipe = self.recipe
        if opened.initial is not None:
            keep_origin(opened.initial, opened.folder)
        self.evaluation: Optional[Evaluation] = None
        self.eval_network = self.built.forward_pass(recipe)
        self.saving = Saving(self)
        peak, peak_name = peak_flops(runtime)
        self.utilisation = Utilisation(
            flop_per_token=estimate(recipe, recipe.model.vocab_size).flop_per_token,
            formula=FLOP_FORMULA,
            peak_flops=float(self.ranks.gather(peak).sum()),
            peak_name=peak_name,
        )

    def run(self, stopper: Stopper, metrics: Union[Metrics, NoMetrics]) -> int:
        """Train to the last step, or until the stopper of one of the ranks says no. The state is saved either way.

        Returns:
            the stopper's code, GO_ON after the last step.

        Raises:
            NotFiniteError: if loss or gradients are not finite and train.check_finite is stop.
        """
        with self.saving.finishing():
            code = self._run(stopper, metrics)
        self.heartbeat.beat("done", self.step)
        return GO_ON if self.step == self.recipe.train.steps else code

    def _run(self, stopper: Stopper, metrics: Union[Metrics, NoMetrics]) -> int:
        recipe, code = self.recipe, GO_ON
        window = Window(self)
        while self.step < recipe.train.steps and code == GO_ON:
            try:
                loss, norm, lr = self.one_step()
            except NotFiniteError as error:
                self._keep_what_was_before(error, metrics)
                raise
            if self.step == self.first_step + 1:
                stopper.begin()
                window = Window(self)  # the first step compiled the graph
            else:
                self._show(loss, window)
            is_finite = math.isfinite(loss) and math.isfinite(norm)
            if self.step % recipe.log.every == 0 or self.step == recipe.train.steps or not is_finite:
                metrics.write(self.step, {"loss": loss, "lr": lr, "grad_norm": norm, **window.scalars()})
                window = Window(self)
            if recipe.log.norms_every and self.step % recipe.log.norms_every == 0:
                metrics.write(self.step, self.norms())
            code = self._together(stopper)
            last = self.step == recipe.train.steps
            if last or (recipe.train.eval_every and self.step % recipe.train.eval_every == 0 and code == GO_ON):
                self.evaluate(metrics)
            if last or code or (recipe.checkpoint.every and self.step % recipe.checkpoint.every == 0):
                self.saving.save(metrics)
            self.saving.report()
            window.skip_pause()
        return code

    def _keep_what_was_before(self, error: NotFiniteError, metrics: Union[Metrics, NoMetrics]) -> None:
        """Save the state that the next step was not applied to, so that the step can be made again and looked into."""
        step = self.step + 1
        metrics.write(step, {"loss": error.loss, "lr": self.learning_rate_of(step), "grad_norm": error.norm})
        try:
            if self.step:  # else the run's beginning, which needs no checkpoint
                self.saving.save(metrics)
                self.saving.complete()
        except CheckpointError as failed:
            self.terminal.say(f"{failed}")
        self.ranks.meet()  # each has written its part before one is seen to fail

    def _together(self, stopper: Stopper) -> int:
        """What all ranks do next: each says whether it is to stop, and the first, when the ranks are to be compared."""
        codes = self.ranks.gather(stopper.code(self.step), self.slow_ranks.is_due())
        if codes[0, 1]:
            for line in self.slow_ranks.found():
                self.terminal.say(f"step {self.step}: {line}")
        return agreed(codes[:, 0])

    def _show(self, loss: float, window: "Window") -> None:
        left = (self.recipe.train.steps - self.step) * window.step_s
        details = f"loss {loss:.3f}  {window.tokens_s:,.0f} tokens/s  {duration(left)} left"
        self.terminal.progress(self.step, self.recipe.train.steps, details)

    def evaluate(self, metrics: Union[Metrics, NoMetrics]) -> None:
        """Held-out loss, as a row of the metrics; nothing if nothing is held out."""
        recipe, heldout = self.recipe, self.opened.corpus.heldout
        if heldout.num_tokens < 2 or no_evaluation(recipe):
            return
        count, seq_len = self.built.rows // recipe.parallel.micro_batches, recipe.data.seq_len
        self.heartbeat.beat("compiling" if self.evaluation is None else "evaluating", self.step)
        if self.evaluation is None:
            with self.runtime.compiling("the evaluation graph", self.terminal):
                compile_evaluation(self.eval_network, count, seq_len)
        self.terminal.status(f"{self.step}/{recipe.train.steps} evaluating on held-out documents")
        self.heartbeat.beat("evaluating", self.step)
        batches = heldout_batches(heldout, seq_len, count)
        self.evaluation = evaluate(self.eval_network, batches, self.ranks, together=self.built.is_partitioned)
        metrics.write(self.step, {"eval_loss": self.evaluation.loss, "eval_tokens": self.evaluation.tokens})
        self.saving.note(self.evaluation.loss)
        self.terminal.say(f"step {self.step}: held-out loss {self.evaluation.loss:.4f}")


class Window:
    """Speed since the last logged step, without evaluation and saving; NaN before a step was timed."""

    def __init__(self, training: Training) -> None:
        self._training, self._first_step, self._start = training, training.step, time.perf_counter()
        self._now = self._start

    @property
    def step_s(self) -> float:
        """Seconds a step."""
        self._now = time.perf_counter()
        num_steps = self._training.step - self._first_step
        return (self._now - self._start) / num_steps if num_steps else math.nan

    @property
    def tokens_s(self) -> float:
        """Tokens a second."""
        return self._training.recipe.train.tokens_per_step / self.step_s

    def skip_pause(self) -> None:
        """What was done since the speed was last read does not count."""
        self._start += time.perf_counter() - self._now

    def scalars(self) -> dict[str, float]:
        """The columns of metrics.jsonl that concern speed and position."""
        training, step_s = self._training, self.step_s
        tokens_s = training.recipe.train.tokens_per_step / step_s
        return {
            "tokens_s": tokens_s,
            "step_s": step_s,
            "samples": training.step * training.recipe.sequences_per_step,
            "mfu": training.utilisation.mfu(tokens_s),
        }
