"""Show a recipe resolved: every key, then parameters, tokens, arithmetic, memory and disk.

example:  mindmodel recipe recipes/cpu/tiny.yaml train.steps=50
          mindmodel recipe recipes/llama/8b.yaml --single --shrink
          mindmodel recipe --keys
"""

from __future__ import annotations

import argparse
from typing import Iterator

from mindmodel.cli.arguments import add_recipe_arguments
from mindmodel.errors import RecipeError
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.recipe.estimate import Estimate, estimate, known_vocab_size
from mindmodel.recipe.keys import keys_table
from mindmodel.recipe.load import load_with_changes
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import data_size, quantity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser, optional=True)
    parser.add_argument("--keys", action="store_true", help="list every key with its type, default and meaning")


def run(args: argparse.Namespace) -> int:
    if args.keys:
        print(keys_table())
        return 0
    if args.recipe is None:
        raise RecipeError("no recipe given. Use mindmodel recipe recipes/cpu/tiny.yaml, or --keys for all keys.")
    recipe, changes = load_with_changes(args.recipe, args.overrides, single=args.single, shrink=args.shrink)
    print(recipe_to_yaml(recipe))
    print("\n".join(_summary(recipe)))
    if changes:
        print("\n".join(["", "changed by --single and --shrink:", *(f"  {change}" for change in changes)]))
    return 0


def with_vocabulary(recipe: Recipe) -> Recipe:
    """The recipe with the size of its vocabulary.

    Raises:
        RecipeError: if only the tokenizer's file knows it.
    """
    size = known_vocab_size(recipe)
    if size is None:
        raise RecipeError(
            f"recipe '{recipe.name}', model.vocab_size: left to the tokenizer '{recipe.data.tokenizer}', which this "
            "verb does not read. Give model.vocab_size, such as model.vocab_size=32000."
        )
    return recipe.with_keys({"model.vocab_size": size})


def _summary(recipe: Recipe) -> Iterator[str]:
    """What the recipe will need, in lines."""
    yield f"batch       {_batch(recipe)}"
    vocab_size = known_vocab_size(recipe)
    if vocab_size is None:
        yield "parameters  not known before the tokenizer is read; give model.vocab_size"
        return
    need = estimate(recipe, vocab_size)
    yield from _model_lines(recipe, need)
    yield f"memory      {data_size(need.memory_bytes)} on one device, all degrees 1, and 0.4 GiB for MindSpore"
    yield f"            weights, gradients, moments: {data_size(need.state_bytes)}"
    sequences = recipe.sequences_per_step // recipe.parallel.micro_batches
    yield f"            activations {data_size(need.activation_bytes)}, logits {data_size(need.logit_bytes)}"
    yield f"            of a micro-batch of {sequences} sequences"
    checkpoints = f"{need.num_checkpoints} checkpoints of {data_size(need.checkpoint_bytes)}"
    yield f"disk        {data_size(need.disk_bytes)} for {checkpoints}"


def _batch(recipe: Recipe) -> str:
    """Sequences of a step, and how they are shared."""
    micro, dp = recipe.parallel.micro_batches, recipe.parallel.dp
    text = f"{recipe.sequences_per_step} sequences of {recipe.data.seq_len} tokens a step"
    if dp == "auto":
        return text
    per_rank = recipe.sequences_per_rank
    return f"{text}, {per_rank} a dp rank,\n            {per_rank // micro} a micro-batch{filling(recipe)}"


def filling(recipe: Recipe) -> str:
    """Names the sequences that only fill a batch up, with a comma before it; nothing when there are none."""
    added = recipe.padded_sequences - recipe.sequences_per_step
    return f", {added} of them empty, for dp and micro_batches do not share evenly" if added else ""


def _model_lines(recipe: Recipe, need: Estimate) -> Iterator[str]:
    """Parameters, tokens and arithmetic."""
    count = need.parameters
    head = f"output layer {quantity(count.head)}" if count.head else "output layer tied"
    yield f"parameters  {quantity(count.total)}"
    layers = f"{count.num_layers} layers of {quantity(count.per_layer)}"
    yield f"            embedding {quantity(count.embedding)}, {layers}, {head}"
    ratio = f"{need.tokens / count.total:.3g} a parameter"
    yield f"tokens      {quantity(need.tokens)} in {recipe.train.steps} steps, {ratio}"
    yield f"arithmetic  {quantity(need.flop_per_token)}FLOP a token, {quantity(need.flop)}FLOP in all"
    yield f"            6 N + 12 L H d S, N = {quantity(count.multiplied)} in matmuls"
