"""The model sizes that are measured, their arithmetic, their data and their recipe. Imports no framework."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Optional

import numpy as np

from mindmodel.models.family import find_family
from mindmodel.recipe.estimate import parameters
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.schema import ModelSection, Recipe

SEED = 1
NUM_BATCHES = 4
PEAK_LR = 3e-4
NUM_PROMPT, NUM_NEW = 32, 128
"""Tokens of a prompt and of an answer."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A Llama with untied embeddings and as many KV heads as heads, and its batch."""

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    seq_len: int
    num_sequences: int
    ffn_size: int

    @property
    def num_tokens(self) -> int:
        """Of a step."""
        return self.num_sequences * self.seq_len

    @property
    def model(self) -> ModelSection:
        """The architecture, all sizes filled in."""
        return ModelSection(
            family="llama",
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_size=self.hidden_size // self.num_heads,
            ffn_size=self.ffn_size,
            vocab_size=self.vocab_size,
            qk_norm=find_family("llama").qk_norm,
        )

    @property
    def step_flop(self) -> int:
        """Of a training step: 6 N + 6 L S D a token, N the parameters without the embedding table.

        The second term is attention's: the causal half of 12 L S D.
        """
        per_token = 6 * parameters(self.model, self.vocab_size).multiplied
        per_token += 6 * self.num_layers * self.seq_len * self.hidden_size
        return per_token * self.num_tokens

    @property
    def matmul_flop(self) -> int:
        """Of the matmuls with a weight in a training step: forward and both gradients."""
        return sum(6 * self.num_tokens * inputs * outputs * count for inputs, outputs, count in self.matmuls)

    @property
    def matmuls(self) -> tuple[tuple[int, int, int], ...]:
        """(inputs, outputs, how many) of the weights: qkv, out, gate and up, down, head."""
        width, layers = self.hidden_size, self.num_layers
        return (
            (width, 3 * width, layers),
            (width, width, layers),
            (width, 2 * self.ffn_size, layers),
            (self.ffn_size, width, layers),
            (width, self.vocab_size, 1),
        )


def _size(name: str, *numbers: int) -> Size:
    vocab_size, hidden_size, num_layers, num_heads, seq_len, num_sequences, ffn_size = numbers
    return Size(
        name=name,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        seq_len=seq_len,
        num_sequences=num_sequences,
        ffn_size=ffn_size,
    )


SIZES = {
    size.name: size
    for size in (
        _size("tiny", 512, 128, 2, 4, 128, 8, 384),
        _size("small", 4096, 384, 6, 6, 256, 8, 1024),
        _size("larger", 8192, 768, 8, 12, 512, 2, 2048),
    )
}


def batch(size: Size, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and the tokens after them, int32 [sequences, S]; after NUM_BATCHES they come again."""
    seed = int.from_bytes(hashlib.sha256(size.name.encode()).digest()[:4], "little") + index % NUM_BATCHES
    shape = size.num_sequences, size.seq_len + 1
    tokens = np.random.default_rng(seed).integers(0, size.vocab_size, shape, dtype=np.int32)
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def prompts(size: Size, count: int) -> np.ndarray:
    """Random tokens, int64 [count, NUM_PROMPT]."""
    return np.random.default_rng(SEED).integers(0, size.vocab_size, (count, NUM_PROMPT))


def recipe_of(size: Size, threads: int, dtype: str = "float32", cpu_kernels: Optional[str] = None) -> Recipe:
    """A recipe that trains this size as the rivals do.

    Args:
        threads: CPU threads.
        dtype: train.compute_dtype.
        cpu_kernels: runtime.cpu_kernels; None leaves the choice to mindmodel.
    """
    runtime = {"device": "cpu", "threads": threads}
    if cpu_kernels is not None:
        runtime["cpu_kernels"] = cpu_kernels
    sections = {
        "name": f"bench-{size.name}",
        "model": {name: value for name, value in vars(size.model).items() if value is not None},
        "data": {"source": "stdlib", "seq_len": size.seq_len},
        "parallel": {"dp": 1},
        "train": {"steps": 1, "tokens_per_step": size.num_tokens, "compute_dtype": dtype, "seed": SEED},
        "optim": {"peak_lr": PEAK_LR, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1},
        "runtime": runtime,
    }
    return recipe_from_dict(sections, "benchmark")
