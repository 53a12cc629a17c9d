"""A small valid recipe that tests bend."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.schema import Recipe

SMALL = """\
model: {family: llama, hidden_size: 64, num_layers: 4, num_heads: 4, num_kv_heads: 2, ffn_size: 160}
data: {source: stdlib, tokenizer_vocab_size: 512, seq_len: 32}
train: {steps: 100, tokens_per_step: 256}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Path of a recipe that is right: 8 sequences of 32 tokens a step."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def load(small: Path) -> Callable[..., Recipe]:
    """Load the small recipe with overrides."""
    return lambda *overrides, **options: load_recipe(small, overrides, **options)
