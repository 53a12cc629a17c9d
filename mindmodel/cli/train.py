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
from pathlib import Path
from typing import TYPE_CHECKING

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_recipe_arguments, load_as_asked
from mindmodel.files import write_text_safely
from mindmodel.parallel.environment import place, prepare_environment
from mindmodel.parallel.heartbeat import attach_to_launcher, heartbeat_of_this_process
from mindmodel.parallel.loading import load_runtime
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal
from mindmodel.train.metrics import Metrics, NoMetrics
from mindmodel.train.run import (
    OpenedRun,
    find_position,
    for_this_machine,
    is_finished,
    join_position,
    open_run,
    owned,
    refuse_other_ranks_run,
)
from mindmodel.train.stopping import GO_ON, Stopper, reason

if TYPE_CHECKING:
    from mindmodel.parallel.runtime import Runtime
    from mindmodel.train.loop import Training

INTERRUPTED = 130
SAMPLE_PROMPT = "def"
SAMPLE_TOKENS = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    attach_to_launcher()
    terminal = Terminal()
    recipe = load_as_asked(args, terminal)
    heartbeat_of_this_process().beat("starting", 0)
    here = place()
    if here.is_scheduler:
        return _serve()
    recipe = for_this_machine(recipe, here.num_ranks)
    folder = RunFolder(Path(recipe.output))
    try:
        if here.rank > 0:
            return _join(recipe, folder, terminal)
        with owned(folder):
            return _go_on(recipe, folder, terminal)
    except KeyboardInterrupt:
        terminal.say("interrupted: nothing was saved since the last line that says so. The same command starts again.")
        return INTERRUPTED


def _go_on(recipe: Recipe, folder: RunFolder, terminal: Terminal) -> int:
    position = find_position(recipe, folder, terminal)
    if is_finished(recipe, folder, position, terminal):
        _next_commands(terminal, folder.path)
        return 0
    opened = open_run(recipe, folder, position, terminal)
    with Stopper(recipe.train) as stopper:
        runtime = load_runtime(opened.recipe, "train", terminal)
        runtime.ranks.gather(position.step)  # the others may open it now
        _introduce(opened, terminal, runtime)
        training = _begin(opened, runtime, terminal)
        code = _train(training, stopper)
    runtime.ranks.meet()  # saved: the others may go
    if code != GO_ON:
        why = reason(code, training.step)
        terminal.say(f"{why}: stopped after step {training.step}, saved. The same command goes on from there.")
        return INTERRUPTED if code > 0 else 0
    _report(opened, training, terminal)
    return 0


def _serve() -> int:
    """The one process of a job that trains nothing."""
    prepare_environment()
    from mindmodel.parallel.runtime import serve_ranks

    serve_ranks()
    return 0


def _join(recipe: Recipe, folder: RunFolder, terminal: Terminal) -> int:
    """What every rank but the first does: it finds what that one has opened, and writes nothing."""
    with Stopper(recipe.train) as stopper:
        runtime = load_runtime(recipe, "train", terminal)
        step = int(runtime.ranks.gather(0)[0, 0])  # where the first has opened the run
        opened = open_run(recipe, folder, join_position(recipe, folder, step), terminal)
        training = _begin(opened, runtime, terminal)
        code = training.run(stopper, NoMetrics())
    runtime.ranks.meet()  # the first has saved it
    return INTERRUPTED if code > 0 else 0


def _begin(opened: OpenedRun, runtime: Runtime, terminal: Terminal) -> Training:
    """The run in memory; all ranks must have opened the same one."""
    from mindmodel.train.loop import Training

    refuse_other_ranks_run(opened, runtime.ranks)
    return Training(opened, runtime, terminal)


def _train(training: Training, stopper: Stopper) -> int:
    """From here on the folder holds a run. Gives the stopper's code."""
    opened, position = training.opened, training.opened.position
    write_text_safely(opened.folder.recipe_file, recipe_to_yaml(opened.recipe))
    with Metrics(opened.folder, position.step) as metrics:
        row = {"from_step": position.step, "changes": list(position.changes)}
        metrics.describe({**row, **training.utilisation.row()})
        return training.run(stopper, metrics)


def _introduce(opened: OpenedRun, terminal: Terminal, runtime: Runtime) -> None:
    corpus, position, ranks = opened.corpus, opened.position, runtime.ranks.count
    terminal.say(f"run folder: {opened.folder.path}")
    each = f", each of {ranks} ranks" if ranks > 1 else ""
    terminal.say(f"machine: {runtime.device}, {runtime.threads} threads, {runtime.kernels}{each}")
    terminal.say(
        f"corpus: {corpus.train.num_tokens:,} tokens, {corpus.heldout.num_tokens:,} held out, "
        f"vocabulary {corpus.tokenizer.vocab_size:,}"
    )
    if position.checkpoint is not None:
        terminal.say(f"going on from {position.checkpoint.path}")
    for change in position.changes:
        terminal.say(f"changed since: {change}")
    from mindmodel.train.evaluate import no_evaluation

    if corpus.heldout.num_tokens > 1 and (why := no_evaluation(opened.recipe)):
        terminal.say(f"no held-out loss while it trains: {why}. `mindmodel eval {opened.folder.path}` has it")
    if corpus.heldout.num_tokens < 2 and opened.recipe.data.heldout > 0:
        terminal.say("no held-out loss: the corpus is one document, and data.heldout takes whole ones")


def _report(opened: OpenedRun, training: Training, terminal: Terminal) -> None:
    """Held-out loss beside the unigram entropy, a sample, and what to try next."""
    from mindmodel.data.statistics import unigram_entropy

    corpus = opened.corpus
    if training.evaluation is not None:
        entropy = unigram_entropy(corpus.heldout, corpus.tokenizer.vocab_size)
        loss, perplexity = training.evaluation.loss, training.evaluation.perplexity
        terminal.say(f"held-out loss {loss:.4f} nats a token, perplexity {perplexity:.1f}")
        terminal.say(f"unigram entropy of the same tokens {entropy:.4f} nats: the loss is {loss / entropy:.3f} of it")
    if not training.built.is_partitioned:
        _sample(opened, training, terminal)
    _next_commands(terminal, opened.folder.path)


def _sample(opened: OpenedRun, training: Training, terminal: Terminal) -> None:
    from mindmodel.generation.sample import Generator, Sampling
    from mindmodel.generation.text import continue_text, prompt_ids

    recipe, corpus = opened.recipe, opened.corpus
    ids = prompt_ids(corpus.tokenizer, SAMPLE_PROMPT)
    generator = Generator(training.decoder, recipe.model, corpus.tokenizer.vocab_size, len(ids) + SAMPLE_TOKENS)
    with training.runtime.compiling("the generation graph", terminal):
        generator.compile(ids)
    text = "".join(continue_text(generator, corpus.tokenizer, ids, SAMPLE_TOKENS, Sampling(seed=recipe.train.seed)))
    terminal.say(f"sample:\n{SAMPLE_PROMPT}{text}\n")


def _next_commands(terminal: Terminal, path: Path) -> None:
    run = shlex.quote(str(path))
    terminal.say("next:")
    terminal.say(f'  mindmodel generate {run} --prompt "def"')
    terminal.say(f"  mindmodel eval {run}")
    terminal.say(f"  mindmodel convert to-hf {run} {shlex.quote(str(path) + '-hf')}")
