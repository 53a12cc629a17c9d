"""What a recipe will need: parameters, tokens, arithmetic, memory, disk. Formulas only; nothing is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from mindmodel.recipe.schema import ModelSection, Recipe

STATE_BYTES = 16
"""Per parameter while training: weight, gradient and two moments, float32."""

CHECKPOINT_BYTES = 12
"""Per parameter in a checkpoint: weight and two moments, float32."""

LOGIT_COPIES = 3
"""Arrays as large as the logits that are alive at once: logits, their exponentials, their gradient."""

FLOP_FORMULA = "6 N + 12 L H d S, N parameters in matmuls, L layers of H heads of size d, S tokens a sequence"
"""FLOP per token, forward and backward."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters."""

    embedding: int
    head: int
    per_layer: int
    num_layers: int
    final_norm: int

    @property
    def layers(self) -> int:
        """Of all decoder blocks."""
        return self.per_layer * self.num_layers

    @property
    def total(self) -> int:
        """Of the whole model; a tied output layer counts once."""
        return self.embedding + self.head + self.layers + self.final_norm

    @property
    def multiplied(self) -> int:
        """Those that take part in a matmul: all but an embedding that is only looked up."""
        return self.total - (self.embedding if self.head else 0)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will need. Memory is of one device that runs the recipe alone, all degrees 1."""

    parameters: Parameters
    tokens: int
    flop_per_token: int
    state_bytes: int
    activation_bytes: int
    logit_bytes: int
    checkpoint_bytes: int
    num_checkpoints: int

    @property
    def flop(self) -> int:
        """Of the whole run."""
        return self.flop_per_token * self.tokens

    @property
    def memory_bytes(self) -> int:
        """Weights, gradients, moments, activations and logits."""
        return self.state_bytes + self.activation_bytes + self.logit_bytes

    @property
    def disk_bytes(self) -> int:
        """Of all checkpoints that can exist at once."""
        return self.checkpoint_bytes * self.num_checkpoints


def known_vocab_size(recipe: Recipe) -> Optional[int]:
    """Rows of the embedding as far as the recipe tells; None when only the tokenizer's file knows."""
    if recipe.model.vocab_size is None and recipe.data.tokenizer == "train":
        return recipe.data.tokenizer_vocab_size
    return recipe.model.vocab_size


def _head_sizes(model: ModelSection) -> tuple[int, int]:
    """Width of all query heads, and of all key (or value) heads."""
    size = model.head_size or model.hidden_size // model.num_heads
    return model.num_heads * size, (model.num_kv_heads or model.num_heads) * size


def parameters(model: ModelSection, vocab_size: int) -> Parameters:
    """Count the parameters.

    Args:
        model: architecture; `qk_norm` filled in.
        vocab_size: rows of the embedding.
    """
    width, (queries, keys) = model.hidden_size, _head_sizes(model)
    norms = 2 * width + (2 * queries // model.num_heads if model.qk_norm else 0)
    return Parameters(
        embedding=vocab_size * width,
        head=0 if model.tied_embeddings else vocab_size * width,
        per_layer=(queries + 2 * keys) * width + queries * width + 3 * model.ffn_size * width + norms,
        num_layers=model.num_layers,
        final_norm=width,
    )


def _layer_values(recipe: Recipe) -> int:
    """Numbers kept for the backward pass per token and layer."""
    model, (queries, keys) = recipe.model, _head_sizes(recipe.model)
    residual = 4 * model.hidden_size
    attention = queries + 2 * keys + 2 * queries + (queries + keys if model.qk_norm else 0)
    return residual + attention + model.num_heads * recipe.data.seq_len + 3 * model.ffn_size


def activation_bytes(recipe: Recipe) -> int:
    """Activations alive at the end of the forward pass of one micro-batch, with the CPU's graph formulas.

    Per token and layer: residual stream and norm output twice (4 D); q, k, v ((H + 2 K) d); attention output before
    and after its transpose (2 H d); attention probabilities (H S); gate, up and their product (3 F); with QK-norm the
    unnormed q and k ((H + K) d). All are kept, whatever `recompute` says: only ranks of a mesh of Ascend devices
    compute again. Holds for fused graph kernels; without them the peak was about 2.5 times as high.
    """
    tokens = recipe.train.tokens_per_step // recipe.parallel.micro_batches
    value_bytes = 2 if recipe.train.compute_dtype == "bfloat16" else 4
    return tokens * recipe.model.num_layers * _layer_values(recipe) * value_bytes


def _checkpoints_at_once(recipe: Recipe) -> int:
    """The newest ones, one being written, the best, and those kept for ever."""
    checkpoint, steps = recipe.checkpoint, recipe.train.steps
    saves = math.ceil(steps / checkpoint.every) if checkpoint.every else 1
    forever = steps // checkpoint.keep_every if checkpoint.keep_every else 0
    return min(saves, checkpoint.keep + 1 + checkpoint.keep_best + forever)


def estimate(recipe: Recipe, vocab_size: int) -> Estimate:
    """What a run of this recipe will need.

    Args:
        recipe: with derived defaults filled in.
        vocab_size: rows of the embedding, at least 1.

    Source: FLOP per token, forward and backward, 6 N + 12 L H d S with N the parameters that take part in a matmul:
        Chowdhery et al., PaLM (arXiv 2204.02311), appendix B; causal masking is not subtracted.
    """
    model, count = recipe.model, parameters(recipe.model, vocab_size)
    queries, _ = _head_sizes(model)
    tokens = recipe.train.tokens_per_step // recipe.parallel.micro_batches
    return Estimate(
        parameters=count,
        tokens=recipe.train.steps * recipe.train.tokens_per_step,
        flop_per_token=6 * count.multiplied + 12 * model.num_layers * queries * recipe.data.seq_len,
        state_bytes=STATE_BYTES * count.total,
        activation_bytes=activation_bytes(recipe),
        logit_bytes=LOGIT_COPIES * 4 * tokens * vocab_size,
        checkpoint_bytes=CHECKPOINT_BYTES * count.total,
        num_checkpoints=_checkpoints_at_once(recipe),
    )
