"""Counts and formulas against sums done another way, and against published sizes."""

from __future__ import annotations

import dataclasses
import math

import pytest

from mindmodel.models.family import parameter_shapes
from mindmodel.recipe.estimate import estimate, known_vocab_size, parameters
from mindmodel.recipe.schema import ModelSection

LLAMA_8B = ModelSection(
    hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_size=128, ffn_size=14336, qk_norm=False
)
QWEN3_06B = ModelSection(
    hidden_size=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_size=128,
    ffn_size=3072,
    tied_embeddings=True,
    qk_norm=True,
)


@pytest.mark.parametrize(
    "model, vocab_size, published", [(LLAMA_8B, 128256, 8_030_261_248), (QWEN3_06B, 151936, 596_049_920)]
)
def test_parameters_are_the_published_number_and_the_sum_over_all_shapes(model, vocab_size, published):
    shapes = parameter_shapes(dataclasses.replace(model, vocab_size=vocab_size))
    count = parameters(model, vocab_size)
    assert count.total == published == sum(math.prod(shape) for shape in shapes.values())


def test_an_embedding_that_is_only_looked_up_takes_part_in_no_matmul():
    untied, tied = parameters(LLAMA_8B, 128256), parameters(QWEN3_06B, 151936)
    assert untied.multiplied == untied.total - 128256 * 4096
    assert tied.multiplied == tied.total


def test_tokens_and_arithmetic_of_a_run(load):
    recipe = load("train.steps=10")
    need = estimate(recipe, 512)
    assert need.tokens == 10 * 256
    assert need.flop_per_token == 6 * need.parameters.multiplied + 12 * 4 * 64 * 32
    assert need.flop == need.tokens * need.flop_per_token


def test_memory_is_sixteen_bytes_a_parameter_and_the_activations_of_a_micro_batch(load):
    whole, half = estimate(load(), 512), estimate(load("parallel.micro_batches=2"), 512)
    assert whole.state_bytes == 16 * whole.parameters.total
    assert whole.logit_bytes == 3 * 4 * 256 * 512
    assert whole.activation_bytes == 4 * 256 * 4 * (4 * 64 + (64 + 2 * 32) + 2 * 64 + 4 * 32 + 3 * 160)
    assert half.activation_bytes * 2 == whole.activation_bytes
    assert whole.memory_bytes == whole.state_bytes + whole.logit_bytes + whole.activation_bytes


def test_bfloat16_takes_half_the_memory_and_recompute_no_less_on_one_device(load):
    sizes = {estimate(load(f"parallel.recompute={how}"), 512).activation_bytes for how in ("none", "selective", "full")}
    assert sizes == {2 * estimate(load("train.compute_dtype=bfloat16"), 512).activation_bytes}


def test_qk_norm_keeps_the_unnormed_heads(load):
    plain, normed = estimate(load(), 512), estimate(load("model.family=qwen3"), 512)
    assert normed.activation_bytes - plain.activation_bytes == 4 * 256 * 4 * (64 + 32)


@pytest.mark.parametrize(
    "overrides, number",
    [
        ([], 1),
        (["checkpoint.every=10"], 3),
        (["checkpoint.every=60"], 2),
        (["checkpoint.every=10", "checkpoint.keep_every=50"], 5),
        (["checkpoint.every=10", "checkpoint.keep=20"], 10),
        (["checkpoint.every=10", "checkpoint.keep_best=true", "train.eval_every=10"], 4),
    ],
)
def test_disk_holds_the_newest_checkpoints_one_being_written_and_those_kept_for_ever(load, overrides, number):
    need = estimate(load(*overrides), 512)
    assert need.num_checkpoints == number
    assert need.disk_bytes == number * 12 * need.parameters.total


def test_the_vocabulary_is_known_when_given_or_trained(load):
    assert known_vocab_size(load()) == 512
    assert known_vocab_size(load("model.vocab_size=640")) == 640
    assert known_vocab_size(load("data.tokenizer=somewhere")) is None
