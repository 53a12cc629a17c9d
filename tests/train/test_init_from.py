"""Weights to begin with: of a run, a checkpoint or a Hugging Face folder, if the architecture is the recipe's."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.convert.hf import from_hf, to_hf
from mindmodel.data.tokenizer import train_tokenizer
from mindmodel.errors import CheckpointError, ConversionError
from mindmodel.models.family import parameter_shapes
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.load import load_recipe
from mindmodel.train.init_from import initial_weights, keep_origin

RECIPE = """
model: {hidden_size: 16, num_layers: 1, num_heads: 2, num_kv_heads: 1, ffn_size: 32, vocab_size: 260}
data: {source: stdlib, tokenizer_vocab_size: 260, seq_len: 8}
train: {steps: 3, tokens_per_step: 8}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "small.yaml")


@pytest.fixture
def weights(recipe):
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in parameter_shapes(recipe.model).items()}


@pytest.fixture
def run(recipe, weights, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.recipe_file.write_text(recipe_to_yaml(recipe))
    folder.tokenizer.mkdir()
    train_tokenizer(["one two three\n" * 9], 260).copy_to(folder.tokenizer)
    save_checkpoint(
        folder.checkpoints, step=3, samples=3, tokens=24, weights=weights, optimizer={}, recipe=recipe_to_dict(recipe),
        versions={}, random={}, layout={}, keep=1, keep_every=0,
    )
    return folder


def beginning_with(recipe, path):
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, init_from=str(path)))


def test_the_weights_are_the_same_from_a_run_a_checkpoint_and_an_exported_folder(recipe, weights, run, tmp_path):
    to_hf(run.path, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "imported")
    for path in (run.path, run.checkpoints / "step_3", tmp_path / "hf", tmp_path / "imported"):
        found = initial_weights(beginning_with(recipe, path)).weights
        assert set(found) == set(weights) and len(found) == len(weights)
        for name, array in weights.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_another_architecture_is_named_key_by_key(recipe, run):
    model = dataclasses.replace(recipe.model, ffn_size=48, norm_eps=1e-6, init_std=1.0)
    other = dataclasses.replace(recipe, model=model)
    message = "run: another architecture: ffn_size is 32 there and 48 in the recipe; norm_eps is 1e-05 there"
    with pytest.raises(CheckpointError, match=message) as caught:
        initial_weights(beginning_with(other, run.path))
    assert "init_std" not in str(caught.value)


def test_nothing_there_and_something_damaged(recipe, tmp_path):
    with pytest.raises(CheckpointError, match="none: there is no such folder"):
        initial_weights(beginning_with(recipe, tmp_path / "none"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConversionError, match="config.json"):
        initial_weights(beginning_with(recipe, tmp_path))


def test_the_configuration_of_an_imported_model_goes_with_its_weights(recipe, run, tmp_path):
    to_hf(run.path, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "imported")
    for number, origin in enumerate((tmp_path / "hf", tmp_path / "imported", run.path)):
        target = RunFolder(tmp_path / f"target{number}")
        target.create()
        keep_origin(initial_weights(beginning_with(recipe, origin)), target)
        kept = target.huggingface / "config.json"
        assert kept.exists() == (origin != run.path)
        if kept.exists():
            assert kept.read_bytes() == (tmp_path / "hf" / "config.json").read_bytes()
