"""Sample text from a run, a token at a time, from a graph with a key and value cache.

example:  mindmodel generate runs/tiny --prompt "def " --max-tokens 100 --temperature 0.8
          mindmodel generate runs/tiny/checkpoints/step_100 --temperature 0
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from mindmodel.checkpoint.run_folder import resolve_weights
from mindmodel.cli.arguments import at_least, number_between
from mindmodel.data.tokenizer import Tokenizer
from mindmodel.parallel.loading import load_runtime
from mindmodel.recipe.load import load_run_recipe
from mindmodel.terminal import Terminal, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run, or one of its checkpoints/step_N folders")
    parser.add_argument("--prompt", default="", help="text to continue; default: begin a new document")
    parser.add_argument("--max-tokens", type=at_least(1), default=100, help="longest answer, default 100")
    parser.add_argument("--temperature", type=number_between(0, 100), default=0.8, help="0 is greedy; default 0.8")
    parser.add_argument("--top-p", type=number_between(0, 1), default=0.95, help="share drawn from, default 0.95")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the draws, default 0")


def run(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stderr)  # the answer alone goes to standard output
    folder, checkpoint = resolve_weights(Path(args.run_folder))
    recipe = load_run_recipe(folder.recipe_file)
    tokenizer = Tokenizer.load(folder.tokenizer)
    runtime = load_runtime(recipe, "generate", terminal)
    from mindmodel.generation.sample import Generator, Sampling
    from mindmodel.generation.text import continue_text, prompt_ids
    from mindmodel.train.state import load_decoder

    ids = prompt_ids(tokenizer, args.prompt)
    vocab_size = min(recipe.model.vocab_size, tokenizer.vocab_size)
    generator = Generator(load_decoder(recipe, checkpoint), recipe.model, vocab_size, len(ids) + args.max_tokens)
    with runtime.compiling("the generation graph", terminal):
        generator.compile(ids)
    sampling = Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    show = printable if sys.stdout.isatty() else str
    for piece in chain([args.prompt], continue_text(generator, tokenizer, ids, args.max_tokens, sampling)):
        print(show(piece), end="", flush=True)
    print()
    return 0
