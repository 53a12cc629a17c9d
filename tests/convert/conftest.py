"""A run as training leaves it, and tiny models of transformers."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

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
CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def make_recipe(run, **model):
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_size": 8, "ffn_size": 48}
    family = model.get("family", "llama")
    defaults = {"vocab_size": TOKENIZER.vocab_size, "qk_norm": find_family(family).qk_norm}
    return Recipe(
        name="tiny",
        model=ModelSection(**{**sizes, **defaults, **model}),
        data=DataSection(source=("stdlib",), seq_len=32),
        parallel=ParallelSection(),
        train=TrainSection(steps=10, tokens_per_step=64),
        optim=OptimSection(),
        checkpoint=CheckpointSection(),
        runtime=RuntimeSection(output=str(run)),
        log=LogSection(),
    )


@pytest.fixture
def vocab_size():
    """Tokens of the tokenizer in `make_run`."""
    return TOKENIZER.vocab_size


@pytest.fixture
def make_run(tmp_path):
    """A function that makes a trained run: float32 weights, optimizer state, tokenizer."""

    def make(name="run", change=lambda weights: weights, **model):
        run = RunFolder(tmp_path / name)
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

    return make


@pytest.fixture
def save_hf(tmp_path):
    """A function that saves a random tiny model of transformers."""

    def save(family="llama", dtype=torch.float32, tokenizer=True, max_shard_size="5GB", **changes):
        config_class, model_class = CLASSES[family]
        sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
        sizes.update(intermediate_size=48, vocab_size=TOKENIZER.vocab_size + 11, max_position_embeddings=77)
        sizes.update(bos_token_id=3, eos_token_id=4, attn_implementation="eager")
        torch.manual_seed(5)
        model = model_class(config_class(**{**sizes, **changes})).to(dtype)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0, 0.1)  # a norm of ones would hide a mix-up
        folder = tmp_path / f"hf_{family}"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer:
            TOKENIZER.copy_to(folder)
        return folder

    return save
