"""A run as training leaves it, and tiny models of transformers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from runs import TOKENIZER
from runs import make_run as a_run

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


@pytest.fixture
def vocab_size():
    """Tokens of the tokenizer in `make_run`."""
    return TOKENIZER.vocab_size


@pytest.fixture
def make_run(tmp_path):
    """A function that makes a run."""

    def make(name="run", **kwargs):
        return a_run(tmp_path / name, **kwargs)

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
