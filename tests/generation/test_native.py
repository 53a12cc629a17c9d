"""The decoding step in one kernel against the same step as a graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mindmodel.recipe.schema import ModelSection

MODEL = ModelSection(
    hidden_size=37, num_layers=2, num_heads=6, num_kv_heads=2, head_size=10, ffn_size=46, vocab_size=67, qk_norm=False
)
NORMED = replace(MODEL, family="qwen3", qk_norm=True)
TIED = replace(MODEL, num_kv_heads=6, head_size=32, ffn_size=44, tied_embeddings=True)
NUM_PROMPT, NUM_NEW = 5, 6


@pytest.fixture
def logits_of(kernels_of, without_fusion, compiling):
    """Function: logits [steps, B, V] after a prompt and each of some tokens, with these kernels; all weights count."""

    def logits(kernels: str, model: ModelSection, num_sequences: int, compute_dtype: str = "float32") -> np.ndarray:
        from mindspore import Tensor

        from mindmodel.generation.sample import Generator
        from mindmodel.models.decoder import Decoder

        kernels_of(kernels)
        decoder, random = Decoder(model, 8, compute_dtype), np.random.default_rng(3)
        for parameter in decoder.get_parameters():
            std, mean = (0.15, 0) if len(parameter.shape) == 2 else (0.3, 1)
            parameter.set_data(Tensor(random.normal(mean, std, parameter.shape).astype(np.float32)))
        generator = Generator(decoder, model, model.vocab_size, NUM_PROMPT + NUM_NEW, num_sequences)
        ids = random.integers(0, model.vocab_size, (num_sequences, NUM_PROMPT + NUM_NEW)).astype(np.int32)
        with compiling():
            found = [generator.prompt_logits(ids[:, :NUM_PROMPT])]
            found += [generator.next_logits(ids[:, i], i) for i in range(NUM_PROMPT, NUM_PROMPT + NUM_NEW)]
        return np.array(found)

    return logits


def check_close(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-5 of the largest."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "model, num_sequences",
    [(MODEL, 3), (NORMED, 1), (TIED, 1), (MODEL, 21)],
    ids=["grouped heads", "normed heads", "tied embeddings", "many sequences"],
)
def test_the_kernel_gives_the_logits_of_the_graph(model, num_sequences, logits_of):
    expected = logits_of("CPU", model, num_sequences)
    check_close(logits_of("Native", model, num_sequences), expected)
    assert not np.allclose(expected[1:-1], expected[2:], atol=0.1)  # every token changes them


@pytest.mark.parametrize("kernels", ["CPU", "Native"])
def test_a_bfloat16_decoder_generates_in_float32(kernels, logits_of):
    check_close(logits_of(kernels, NORMED, 1, "bfloat16"), logits_of("CPU", NORMED, 1))


@pytest.mark.parametrize("token, position", [(67, 5), (-1, 5), (0, 64), (0, -1)])
def test_ids_and_positions_outside_the_tables_are_refused(token, position, kernels_of, compiling):
    from mindspore import Tensor

    from mindmodel.generation.decode import CachedDecoder
    from mindmodel.generation.native import DecodeStepNative
    from mindmodel.models.decoder import Decoder

    kernels_of("Native")
    step = DecodeStepNative(CachedDecoder(Decoder(MODEL, 8), MODEL, 1, 64), MODEL, 64)
    with compiling(), pytest.raises(RuntimeError):
        step(Tensor(np.array([token], np.int32)), Tensor(np.array([position], np.int32))).asnumpy()
