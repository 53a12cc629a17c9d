"""Train a model from a recipe, in graph mode. When the run folder holds a run, it goes on from the newest checkpoint.

example:  mindmodel train recipes/cpu/tiny.yaml
          mindmodel train recipes/cpu/tiny.yaml train.steps=20 runtime.output=runs/short
          mindmodel train recipes/llama/8b.yaml --single --shrink

Ctrl-C, SIGTERM, SIGUSR1 and a terminal that closes save a checkpoint after the step that runs and exit with 130; the
same command goes on. Before the first step there is nothing to save, and a signal ends the command at once.
"""

from __future__ import annotations

import argparse
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Optional

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_recipe_arguments
from mindmodel.errors import TrainingError
from mindmodel.files import write_text_safely
from mindmodel.parallel.environment import prepare_environment
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.recipe.load import load_with_changes
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal
from mindmodel.train.metrics import Metrics
from mindmodel.train.run import OpenedRun, find_position, for_this_machine, open_run, owned
from mindmodel.train.stopping import Stopper

if TYPE_CHECKING:
    from mindmodel.train.loop import Training

INTERRUPTED = 130
SAMPLE_PROMPT = "def"
SAMPLE_TOKENS = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    terminal = Terminal()
    recipe, changes = load_with_changes(args.recipe, args.overrides, single=args.single, shrink=args.shrink)
    for change in changes:
        terminal.say(f"changed for this machine: {change}")
    recipe = for_this_machine(recipe)
    folder = RunFolder(Path(recipe.output))
    try:
        with owned(folder):
            return _go_on(recipe, folder, terminal)
    except KeyboardInterrupt:
        terminal.say("interrupted: nothing was saved since the last line that says so. The same command starts again.")
        return INTERRUPTED


def _go_on(recipe: Recipe, folder: RunFolder, terminal: Terminal) -> int:
    position = find_position(recipe, folder, terminal)
    if position.step >= recipe.train.steps:
        terminal.say(f"{folder.path}: finished, {position.step} steps. train.steps={2 * position.step} would go on.")
        _next_commands(terminal, folder.path)
        return 0
    opened = open_run(recipe, folder, position, terminal)
    with Stopper(recipe.train) as stopper:
        training = _load(opened, terminal)
        reason = _train(training, stopper)
    if reason is not None:
        terminal.say(f"{reason}: stopped after step {training.step}, saved. The same command goes on from there.")
        return INTERRUPTED if stopper.signal else 0
    _report(opened, training, terminal)
    return 0


def _load(opened: OpenedRun, terminal: Terminal) -> Training:
    prepare_environment(opened.recipe.runtime.threads, opened.recipe.runtime.cpu_kernels)
    with terminal.working("loading MindSpore"):
        from mindmodel.parallel.runtime import start_runtime
        from mindmodel.train.loop import Training
    runtime = start_runtime(opened.recipe, "train", terminal)
    _introduce(opened, terminal, f"{runtime.device}, {runtime.threads} threads, {runtime.kernels}")
    with _failures_in_a_line():
        return Training(opened, runtime, terminal)


def _train(training: Training, stopper: Stopper) -> Optional[str]:
    """From here on the folder holds a run. Gives the reason for an early end."""
    opened, position = training.opened, training.opened.position
    write_text_safely(opened.folder.recipe_file, recipe_to_yaml(opened.recipe))
    with Metrics(opened.folder, position.step) as metrics, _failures_in_a_line():
        row = {"from_step": position.step, "changes": list(position.changes)}
        metrics.describe({**row, **training.utilisation.row()})
        return training.run(stopper, metrics)


@contextmanager
def _failures_in_a_line() -> Iterator[None]:
    """MindSpore raises RuntimeError with pages of text, and NumPy MemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise TrainingError(f"MindSpore failed: {first}. The same command with --debug shows all.") from error


def _introduce(opened: OpenedRun, terminal: Terminal, machine: str) -> None:
    corpus, position = opened.corpus, opened.position
    terminal.say(f"run folder: {opened.folder.path}")
    terminal.say(f"machine: {machine}")
    terminal.say(
        f"corpus: {corpus.train.num_tokens:,} tokens, {corpus.heldout.num_tokens:,} held out, "
        f"vocabulary {corpus.tokenizer.vocab_size:,}"
    )
    if position.checkpoint is not None:
        terminal.say(f"going on from {position.checkpoint.path}")
    for change in position.changes:
        terminal.say(f"changed since: {change}")


def _report(opened: OpenedRun, training: Training, terminal: Terminal) -> None:
    """Held-out loss beside the unigram entropy, a sample, and what to try next."""
    from mindmodel.data.statistics import unigram_entropy
    from mindmodel.generation.sample import Generator, Sampling
    from mindmodel.generation.text import continue_text, prompt_ids

    recipe, corpus = opened.recipe, opened.corpus
    if training.evaluation is not None:
        entropy = unigram_entropy(corpus.heldout, corpus.tokenizer.vocab_size)
        loss, perplexity = training.evaluation.loss, training.evaluation.perplexity
        terminal.say(f"held-out loss {loss:.4f} nats a token, perplexity {perplexity:.1f}")
        terminal.say(f"unigram entropy of the same tokens {entropy:.4f} nats: the loss is {loss / entropy:.3f} of it")
    ids = prompt_ids(corpus.tokenizer, SAMPLE_PROMPT)
    generator = Generator(training.decoder, recipe.model, corpus.tokenizer.vocab_size, len(ids) + SAMPLE_TOKENS)
    with terminal.working("compiling the generation graph"), training.runtime.cache.compiling():
        generator.compile(ids)
    text = "".join(continue_text(generator, corpus.tokenizer, ids, SAMPLE_TOKENS, Sampling(seed=recipe.train.seed)))
    terminal.say(f"sample:\n{SAMPLE_PROMPT}{text}\n")
    _next_commands(terminal, opened.folder.path)


def _next_commands(terminal: Terminal, path: Path) -> None:
    run = shlex.quote(str(path))
    terminal.say("next:")
    terminal.say(f'  mindmodel generate {run} --prompt "def"')
    terminal.say(f"  mindmodel eval {run}")
    terminal.say(f"  mindmodel convert to-hf {run} {shlex.quote(str(path) + '-hf')}")
