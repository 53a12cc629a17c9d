"""Loss and perplexity of a run on its held-out documents, or on a text.

example:  mindmodel eval runs/tiny
          mindmodel eval runs/tiny --text README.md --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mindmodel.checkpoint.load import Checkpoint
from mindmodel.checkpoint.run_folder import RunFolder, resolve_weights
from mindmodel.data.heldout import heldout_tokens, text_tokens
from mindmodel.data.loader import heldout_batches
from mindmodel.data.tokenizer import Tokenizer
from mindmodel.data.tokens import TokenFile
from mindmodel.errors import DataError
from mindmodel.parallel.loading import load_runtime
from mindmodel.recipe.load import load_run_recipe
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal

if TYPE_CHECKING:
    from mindmodel.train.evaluate import Evaluation

TOKENS_PER_BATCH = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run, or one of its checkpoints/step_N folders")
    parser.add_argument("--text", metavar="FILE", help="a text file instead of the held-out documents")
    parser.add_argument("--json", action="store_true", help="one JSON object: loss, perplexity, tokens")


def run(args: argparse.Namespace) -> int:
    folder, checkpoint = resolve_weights(Path(args.run_folder))
    recipe = load_run_recipe(folder.recipe_file)
    with tempfile.TemporaryDirectory(prefix="mindmodel-eval-") as temporary:
        tokens = _tokens(args, folder, recipe, Path(temporary))
        evaluation = _evaluate(recipe, checkpoint, tokens)
    if args.json:
        values = {"loss": evaluation.loss, "perplexity": evaluation.perplexity, "tokens": evaluation.tokens}
        print(json.dumps(values))
    else:
        print(f"loss        {evaluation.loss:.4f} nats a token")
        print(f"perplexity  {evaluation.perplexity:.2f}")
        print(f"tokens      {evaluation.tokens:,}")
    return 0


def _tokens(args: argparse.Namespace, folder: RunFolder, recipe: Recipe, temporary: Path) -> TokenFile:
    if args.text is None:
        tokens = heldout_tokens(recipe.data, folder.path)
    else:
        tokens = text_tokens(args.text, Tokenizer.load(folder.tokenizer), temporary)
    if tokens.num_tokens < 2:
        where = args.text or folder.path
        raise DataError(f"{where}: fewer than two tokens to evaluate on. Name a longer text: --text FILE.")
    return tokens


def _evaluate(recipe: Recipe, checkpoint: Checkpoint, tokens: TokenFile) -> Evaluation:
    terminal = Terminal(sys.stderr)  # the result alone goes to standard output
    runtime = load_runtime(recipe, "eval", terminal)
    from mindmodel.models.decoder import DecoderLoss
    from mindmodel.train.evaluate import compile_evaluation, evaluate
    from mindmodel.train.state import load_decoder

    seq_len = recipe.data.seq_len
    network = DecoderLoss(load_decoder(recipe, checkpoint), recipe.model.vocab_size, gradient=False).set_train(False)
    count = max(1, TOKENS_PER_BATCH // seq_len)
    with runtime.compiling("the evaluation graph", terminal, kept=True):
        compile_evaluation(network, count, seq_len)
    return evaluate(network, heldout_batches(tokens, seq_len, count))
