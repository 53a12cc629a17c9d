"""A run and a Hugging Face folder are the same model, or each difference is named."""

import json

import numpy as np
import pytest
import safetensors.numpy

from mindmodel.convert.check import differences
from mindmodel.convert.hf import from_hf, to_hf


@pytest.fixture
def pair(make_run, tmp_path):
    """A run and its export."""
    run = make_run()
    to_hf(run.path, tmp_path / "out")
    return run.path, tmp_path / "out"


def edit_tensors(folder, edit):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_a_run_and_its_export_do_not_differ(pair):
    assert differences(*pair) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_by_the_export_is_no_difference(make_run, tmp_path, dtype):
    to_hf(make_run().path, tmp_path / "out", dtype)
    assert differences(tmp_path / "run", tmp_path / "out") == []


@pytest.mark.parametrize("tied", [True, False])
def test_an_imported_run_and_its_source_do_not_differ(save_hf, tmp_path, tied):
    folder = save_hf(tie_word_embeddings=tied)
    from_hf(folder, tmp_path / "run")
    assert differences(tmp_path / "run", folder) == []


def test_a_tied_output_layer_that_is_written_out_is_no_difference(save_hf, tmp_path):
    folder = save_hf(tie_word_embeddings=True)

    def write_out(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit_tensors(folder, write_out)
    from_hf(folder, tmp_path / "run")
    assert differences(tmp_path / "run", folder) == []


def test_each_difference_is_named(pair, vocab_size):
    def edit(tensors):
        tensors["model.norm.weight"][3] += 0.5
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
        tensors["extra"] = tensors.pop("model.layers.1.mlp.down_proj.weight")
        tensors["model.layers.0.input_layernorm.weight"] = np.zeros(16, np.int32)

    edit_tensors(pair[1], edit)
    found = "\n".join(differences(*pair))
    assert "model.norm.weight: 1 of 16 numbers differ, by up to 0.5" in found
    assert f"lm_head.weight: shape [{vocab_size - 1}, 16], the run's [{vocab_size}, 16]" in found
    assert f"model.layers.1.mlp.down_proj.weight: not in {pair[1]}" in found
    assert f"extra: only in {pair[1]}" in found
    assert "model.layers.0.input_layernorm.weight: dtype int32, weights are float32, bfloat16, float16" in found


def test_equal_tensors_with_another_configuration_are_another_model(pair):
    path = pair[1] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 5e5, "initializer_range": 0.5}))
    assert differences(*pair) == [f"{path}: rope_theta is 500000.0, the run's 10000.0"]
