"""Choosing tokens, and the loop around the graph, which must give what the whole forward pass gives."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.errors import DataError
from mindmodel.recipe.schema import ModelSection

SIZES = dict(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_size=8, ffn_size=48, vocab_size=67)
MODEL = ModelSection(qk_norm=False, **SIZES)
NORMED = ModelSection(family="qwen3", qk_norm=True, **SIZES)
LOGITS = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))


@pytest.fixture(scope="module")
def sample(runtime):
    from mindmodel.generation import sample

    return sample


def shares(sample, sampling, logits=LOGITS, count=20_000):
    """How often each token is chosen."""
    tokens = sample.choose(np.repeat(logits, count, 0), sampling, np.random.default_rng(1))
    assert tokens.dtype == np.int32
    return np.bincount(tokens, minlength=4) / count


def test_temperature_zero_takes_the_most_likely(sample):
    tokens = sample.choose(np.array([[0, 3, 1], [5, 2, 5]], np.float32), sample.Sampling(temperature=0), None)
    assert tokens.tolist() == [1, 0] and tokens.dtype == np.int32


def test_draws_follow_the_probabilities(sample):
    found = shares(sample, sample.Sampling(temperature=1, top_p=1))
    np.testing.assert_allclose(found, [0.1, 0.4, 0.2, 0.3], atol=0.015)


def test_temperature_is_a_power_of_the_probabilities(sample):
    found = shares(sample, sample.Sampling(temperature=0.5, top_p=1))
    np.testing.assert_allclose(found, np.array([1, 16, 4, 9]) / 30, atol=0.015)


@pytest.mark.parametrize(
    "top_p, expected",
    [
        (0.39, [0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 0, 3 / 7]),
        (0.69, [0, 4 / 7, 0, 3 / 7]),
        (0.71, [0, 4 / 9, 2 / 9, 3 / 9]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_the_share(top_p, expected, sample):
    np.testing.assert_allclose(shares(sample, sample.Sampling(temperature=1, top_p=top_p)), expected, atol=0.015)


@pytest.mark.parametrize("keys", [{"top_p": 0}, {"temperature": 1e-300}])
def test_the_extremes_leave_the_most_likely_token(keys, sample):
    assert shares(sample, sample.Sampling(**keys), count=100)[1] == 1


def test_the_largest_draw_is_still_a_token_that_was_kept(sample):
    class Highest:
        def random(self, shape):
            return np.zeros(shape)  # a draw of 1 - 0: the whole

    assert sample.choose(LOGITS, sample.Sampling(temperature=1, top_p=0.5), Highest()).tolist() == [3]
    assert sample.choose(LOGITS, sample.Sampling(temperature=1, top_p=1), Highest()).tolist() == [0]


def random_decoder(model: ModelSection):
    """With weights so large that an answer depends on every earlier token; norms are not ones."""
    from mindspore import Tensor

    from mindmodel.models.decoder import Decoder, initialize

    decoder = Decoder(model, 24)
    initialize(decoder, model, 11)
    random = np.random.default_rng(5)
    for parameter in decoder.trainable_params():
        if len(parameter.shape) == 2:
            parameter.set_data(parameter * 8)
        else:
            parameter.set_data(Tensor(random.uniform(0.5, 1.5, parameter.shape).astype(np.float32)))
    return decoder


@pytest.fixture(scope="module")
def decoder(runtime):
    return random_decoder(MODEL)


@pytest.fixture(scope="module")
def generator(decoder, sample, runtime):
    generator = sample.Generator(decoder, MODEL, 60, 24, num_sequences=2)
    with runtime.cache.compiling():
        generator.compile([0] * 5)
    return generator


def check_answers(generator, decoder, sample, prompts, compiling):
    """Greedy answers of 19 tokens to prompts of 5 against the argmax of the whole forward pass."""
    from mindspore import Tensor

    with compiling():
        answers = np.stack(list(generator.stream(prompts, 19, sample.Sampling(temperature=0))), axis=1)
        ids = np.concatenate([np.array(prompts), answers], axis=1).astype(np.int32)
        logits = decoder(Tensor(ids)).asnumpy().reshape(len(prompts), 24, -1)
    np.testing.assert_array_equal(answers, logits[:, 4:-1, :60].argmax(-1))
    assert len(np.unique(answers)) > 5 and answers.max() < 60


def test_cached_decoding_gives_the_tokens_of_the_whole_forward_pass(generator, decoder, sample, compiling):
    check_answers(generator, decoder, sample, [[3, 14, 15, 9, 26], [5, 35, 8, 9, 7]], compiling)


def test_the_same_with_normed_heads(sample, compiling):
    decoder = random_decoder(NORMED)
    generator = sample.Generator(decoder, NORMED, 60, 24)
    check_answers(generator, decoder, sample, [[3, 14, 15, 9, 26]], compiling)


def test_all_kernels_generate_the_same_tokens(decoder, sample, compiling, kernels_of):
    kernels_of("Native")
    generator = sample.Generator(decoder, MODEL, 60, 24, num_sequences=2)
    check_answers(generator, decoder, sample, [[3, 14, 15, 9, 26], [5, 35, 8, 9, 7]], compiling)


def test_a_stream_ends_when_every_sequence_has_produced_the_stop_token(generator, sample):
    prompts = [[1, 2, 3], [1, 2, 3]]
    tokens = [step.tolist() for step in generator.stream(prompts, 19, sample.Sampling(temperature=0))]
    stop = tokens[2][0]
    ended = list(generator.stream(prompts, 19, sample.Sampling(temperature=0), stop=stop))
    assert len(ended) == 1 + [step[0] for step in tokens].index(stop)


@pytest.mark.parametrize("prompts", [[[1]], [[1], [1, 2]], [[], []]])
def test_prompts_of_another_number_or_of_unequal_length(prompts, generator, sample):
    with pytest.raises(DataError, match="prompts: 2 prompts of one length are needed, none of them empty"):
        next(generator.stream(prompts, 3, sample.Sampling()))


def test_prompts_that_are_too_long(generator, sample):
    with pytest.raises(DataError, match="prompts: 60 tokens and 5 new ones are more than the 64 that this generator"):
        next(generator.stream([[1] * 60] * 2, 5, sample.Sampling()))
