"""A run as training leaves it, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.data.tokenizer import train_tokenizer
from mindmodel.models.family import find_family, parameter_shapes
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.schema import (
    CheckpointSection,
    DataSection,
    LogSection,
    ModelSection,
    OptimSection,
    ParallelSection,
    Recipe,
    RuntimeSection,
    TrainSection,
)

TOKENIZER = train_tokenizer(["one two three\n"], 260)


def make_recipe(run: Path, **model) -> Recipe:
    """Of a small model; whatever its section shall hold otherwise is given."""
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_size": 8, "ffn_size": 48}
    family = model.get("family", "llama")
    defaults = {"vocab_size": TOKENIZER.vocab_size, "qk_norm": find_family(family).qk_norm}
    return Recipe(
        name="tiny",
        model=ModelSection(**{**sizes, **defaults, **model}),
        data=DataSection(source=("stdlib",), seq_len=32, tokenizer_vocab_size=260),
        parallel=ParallelSection(),
        train=TrainSection(steps=10, tokens_per_step=64),
        optim=OptimSection(),
        checkpoint=CheckpointSection(),
        runtime=RuntimeSection(output=str(run)),
        log=LogSection(),
    )


def make_run(path: Path, change: Callable = lambda weights: weights, **model) -> RunFolder:
    """With float32 weights, a little optimizer state and a tokenizer."""
    run = RunFolder(path)
    recipe = make_recipe(run.path, **model)
    generator = np.random.default_rng(3)
    shapes = parameter_shapes(recipe.model)
    weights = {n: generator.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    save_checkpoint(
        run.checkpoints,
        step=10,
        samples=20,
        tokens=640,
        weights=change(weights),
        optimizer={"first_moment.norm.weight": np.zeros(16, np.float32)},
        recipe=recipe_to_dict(recipe),
        versions={},
        random={},
        layout={},
        keep=1,
        keep_every=0,
    )
    run.recipe_file.write_text(recipe_to_yaml(recipe))
    TOKENIZER.copy_to(run.tokenizer)
    return run
