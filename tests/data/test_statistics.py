"""Token counts."""

import math

import pytest

from mindmodel.data import tokens as module
from mindmodel.data.statistics import unigram_entropy
from mindmodel.data.tokens import TokenFile, TokenWriter


def tokens(tmp_path, ids):
    with TokenWriter(tmp_path / "a", vocab_size=8) as writer:
        writer.add(ids)
    return TokenFile(tmp_path / "a")


def test_entropy_is_that_of_the_frequencies_and_unused_tokens_add_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 3)
    stream = tokens(tmp_path, [0, 0, 0, 0, 5, 5, 6, 7])
    assert unigram_entropy(stream, 8) == pytest.approx(1.75 * math.log(2), rel=1e-12)


def test_entropy_of_equal_shares_is_the_log_of_their_number(tmp_path):
    assert unigram_entropy(tokens(tmp_path, list(range(8)) * 3), 8) == pytest.approx(math.log(8), rel=1e-12)


def test_entropy_of_nothing_is_zero(tmp_path):
    assert unigram_entropy(tokens(tmp_path, []), 8) == 0
