"""Train a model from a recipe, in graph mode. When the run folder holds a run, it goes on from the newest checkpoint.

example:  mindmodel train recipes/cpu/tiny.yaml
          mindmodel train recipes/cpu/tiny.yaml train.steps=20 runtime.output=runs/short
          mindmodel train recipes/llama/8b.yaml --single --shrink

Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint after the step that runs and exit with 130; the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_recipe_arguments
from mindmodel.parallel.environment import prepare_environment
from mindmodel.recipe.load import load_with_changes
from mindmodel.terminal import Terminal
from mindmodel.train.run import OpenedRun, one_device, open_run_folder

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
    recipe = one_device(recipe)
    folder = RunFolder(Path(recipe.output))
    folder.create()
    with folder.lock():
        opened = open_run_folder(recipe, folder, terminal)
        if opened.step >= recipe.train.steps:
            terminal.say(f"{folder.path}: finished, {opened.step} steps. train.steps={2 * opened.step} would go on.")
            _next_commands(terminal, folder.path)
            return 0
        return _train(opened, terminal)


def _train(opened: OpenedRun, terminal: Terminal) -> int:
    recipe = opened.recipe
    prepare_environment(recipe.runtime.threads)
    with terminal.working("loading MindSpore"):
        from mindmodel.parallel.runtime import start_runtime
        from mindmodel.train.loop import Training
        from mindmodel.train.metrics import Metrics
        from mindmodel.train.stopping import Stopper
    runtime = start_runtime(recipe.runtime)
    _introduce(opened, terminal, f"{runtime.device}, {runtime.threads} threads, {runtime.fusion}")
    training = Training(opened, runtime, terminal)
    with Metrics(opened.folder, opened.step) as metrics, Stopper(recipe.train) as stopper:
        metrics.describe({"from_step": opened.step, "changes": list(opened.changes), **training.utilisation.row()})
        reason = training.run(stopper, metrics)
    if reason is not None:
        terminal.say(f"{reason}: stopped after step {training.step}, saved. The same command goes on from there.")
        return INTERRUPTED if stopper.signal else 0
    _report(opened, training, terminal)
    return 0


def _introduce(opened: OpenedRun, terminal: Terminal, machine: str) -> None:
    corpus = opened.corpus
    terminal.say(f"run folder: {opened.folder.path}   machine: {machine}")
    terminal.say(
        f"corpus: {corpus.train.num_tokens:,} tokens, {corpus.heldout.num_tokens:,} held out, "
        f"vocabulary {corpus.tokenizer.vocab_size:,}"
    )
    if opened.checkpoint is not None:
        terminal.say(f"going on from {opened.checkpoint.path}")
    for change in opened.changes:
        terminal.say(f"changed since: {change}")


def _report(opened: OpenedRun, training, terminal: Terminal) -> None:
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
    terminal.say(f'  mindmodel generate {run} --prompt "def" --max-tokens 100 --temperature 0.8')
    terminal.say(f"  mindmodel eval {run}")
    terminal.say(f"  mindmodel convert to-hf {run} {shlex.quote(str(path) + '-hf')}")
