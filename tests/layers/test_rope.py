"""Rotary tables against transformers' for every scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mindmodel.layers.rope import rope_tables, rotation_matrix
from mindmodel.models.family import find_family
from mindmodel.recipe.schema import ModelSection, RopeScaling

SCALINGS = [
    None,
    RopeScaling(type="linear", factor=4.0),
    RopeScaling(type="llama3", factor=8.0, original_max_position_embeddings=64, high_freq_factor=3.0),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=["none", "linear", "llama3"])
def test_tables_equal_transformers(scaling):
    model = ModelSection(
        hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_size=32, ffn_size=64, vocab_size=8,
        rope_theta=500.0, rope_scaling=scaling,
    )
    config = LlamaConfig(**find_family("llama").write_config(model))
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(300)[None])
    for ours, theirs in zip(rope_tables(model, 300), (cos, sin)):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=0, atol=3e-5)  # one float32 step of angle 300


def test_the_rotation_matrix_turns_halves():
    x = np.arange(6, dtype=np.float32)[None]
    assert (x @ rotation_matrix(6)).tolist() == [[-3, -4, -5, 0, 1, 2]]
