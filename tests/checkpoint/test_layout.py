"""Where a run's state lies follows from its recipe: any recipe, any number of ranks, no rank running."""

import math
import random
from collections import Counter, defaultdict

import pytest

from command import ROOT
from mindmodel.checkpoint.blocks import fault_of_blocks
from mindmodel.checkpoint.layout import optimizer_placements, weight_placements
from mindmodel.checkpoint.shares import pieces
from mindmodel.errors import LayoutError, RecipeError
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.load import load_with_changes, recipe_from_dict
from mindmodel.recipe.rules import resolve_degrees, with_defaults


def random_recipe(draw):
    """A decoder of odd sizes on a random layout; None when the two do not fit."""
    dp, tp, pp, cp = (draw.choice((1, 2, 3, 4)) for _ in range(4))
    heads = draw.choice((4, 6, 12))
    try:
        return resolve_degrees(with_defaults(recipe_from_dict({
            "name": "layout",
            "model": {
                "family": draw.choice(("llama", "qwen3")), "tied_embeddings": draw.random() < 0.5,
                "hidden_size": 8 * heads,
                "num_layers": draw.randrange(pp, pp + 4), "ffn_size": 12 * draw.randrange(1, 9), "num_heads": heads,
                "num_kv_heads": draw.choice((1, 2, heads)), "vocab_size": 12 * draw.randrange(9, 20),
            },
            "data": {"source": "stdlib", "seq_len": 96, "tokenizer": "tokenizer.json"},
            "parallel": {
                "dp": dp, "tp": tp, "pp": pp, "cp": cp, "micro_batches": dp * pp,
                "shard_optimizer": draw.choice(("none", "states", "gradients", "parameters")),
            },
            "train": {"steps": 3, "tokens_per_step": 96 * dp * dp * pp},
        }, "tests")), dp * tp * pp * cp)
    except (RecipeError, LayoutError):
        return None


def state_of(recipe):
    weights = weight_placements(recipe)
    return {**weights, **optimizer_placements(weights)}


def faults(placements, mesh):
    found = defaultdict(list)
    for piece in pieces(placements, mesh):
        found[piece.name].append(piece)
    said = {name: fault_of_blocks(found[name], placement.shape) for name, placement in placements.items()}
    return {name: fault for name, fault in said.items() if fault}


def test_the_slices_of_random_layouts_make_up_every_tensor():
    draw, tried = random.Random(1), Counter()
    while sum(tried.values()) < 60:
        recipe = random_recipe(draw)
        if recipe is not None:
            tried[recipe.parallel.shard_optimizer] += 1
            assert faults(state_of(recipe), mesh_of(recipe.parallel)) == {}, recipe.parallel
    assert len(tried) == 4


@pytest.mark.parametrize("level", ["none", "states"])
def test_every_rank_of_a_thousand_writes_its_share(level):
    overrides = [f"parallel.shard_optimizer={level}", "parallel.dp=16"]
    recipe, _ = load_with_changes(str(ROOT / "recipes/llama/70b_1024.yaml"), overrides)
    placements, mesh = state_of(recipe), mesh_of(recipe.parallel)
    size, most = Counter(), max(recipe.parallel.stages)
    for piece in pieces(placements, mesh):
        size[piece.rank] += 4 * math.prod(piece.shape)
    mean = sum(size.values()) / mesh.num_devices
    assert len(size) == mesh.num_devices == 1024
    assert max(size.values()) / mean < 1.02 * most / (recipe.model.num_layers / mesh.pp)
