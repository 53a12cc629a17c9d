"""Batches: packed and shuffled for training; every token once, in order, for evaluation."""

import numpy as np
import pytest

from mindmodel.data.loader import IGNORED, Share, TrainBatches, heldout_batches
from mindmodel.data.tokens import TokenFile, TokenWriter
from mindmodel.errors import DataError


def stream(tmp_path, num_tokens):
    """Tokens 0, 1, 2, ..., so that a token is its own place."""
    with TokenWriter(tmp_path / "a", vocab_size=1000) as writer:
        writer.add(range(num_tokens))
    return TokenFile(tmp_path / "a")


def test_a_sample_is_the_tokens_at_its_place_and_labels_are_one_further(tmp_path):
    batches = TrainBatches(stream(tmp_path, 42), seq_len=8, seed=1)
    assert batches.num_samples == 5
    batch = batches.batch(0, 5)
    assert sorted(batch.ids[:, 0]) == [0, 8, 16, 24, 32]
    np.testing.assert_array_equal(batch.ids, batch.ids[:, :1] + np.arange(8))
    np.testing.assert_array_equal(batch.labels, batch.ids + 1)


def test_arrays_are_int32_and_contiguous(tmp_path):
    tokens = stream(tmp_path, 42)
    for batch in (TrainBatches(tokens, seq_len=8, seed=1).batch(3, 4), next(heldout_batches(tokens, 8, 4))):
        for array in (batch.ids, batch.labels):
            assert array.shape == (4, 8)
            assert array.dtype == np.int32
            assert array.flags.c_contiguous


def test_the_parts_of_a_batch_are_the_batch_across_epochs(tmp_path):
    batches = TrainBatches(stream(tmp_path, 42), seq_len=8, seed=1)
    whole = batches.batch(3, 6).ids
    parts = [batches.batch(first, 2).ids for first in (3, 5, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_label_of_the_last_sample_needs_one_more_token(tmp_path):
    assert TrainBatches(stream(tmp_path, 9), seq_len=8, seed=1).num_samples == 1
    with pytest.raises(
        DataError, match=r"data\.seq_len: one sequence of 8 tokens and its labels need 9 training tokens; there are 8\."
    ):
        TrainBatches(stream(tmp_path, 8), seq_len=8, seed=1)


@pytest.mark.parametrize("num_tokens", [2, 8, 9, 10, 17, 33, 34, 100])
def test_each_held_out_token_but_the_first_is_a_label_once(tmp_path, num_tokens):
    batches = list(heldout_batches(stream(tmp_path, num_tokens), seq_len=4, count=2))
    ids = np.concatenate([batch.ids.ravel() for batch in batches])
    labels = np.concatenate([batch.labels.ravel() for batch in batches])
    counted = labels != IGNORED
    assert labels[counted].tolist() == list(range(1, num_tokens))
    np.testing.assert_array_equal(ids[counted], labels[counted] - 1)
    assert not ids[~counted].any()
    assert {batch.ids.shape for batch in batches} == {(2, 4)}
    assert len(batches) == -(-(num_tokens - 1) // 8)


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_no_label_is_no_batch(tmp_path, num_tokens):
    assert list(heldout_batches(stream(tmp_path, num_tokens), seq_len=4, count=2)) == []


@pytest.mark.parametrize("count, of", [(6, 2), (8, 3), (7, 4), (3, 3)])
def test_shares_of_a_batch_are_the_batch_and_differ_by_one_at_most(tmp_path, count, of):
    batches = TrainBatches(stream(tmp_path, 42), seq_len=8, seed=1)
    shares = [batches.batch(3, count, Share(index=index, of=of)) for index in range(of)]
    np.testing.assert_array_equal(np.concatenate([share.ids for share in shares]), batches.batch(3, count).ids)
    assert {len(share.ids) for share in shares} <= {count // of, -(-count // of)}


def test_a_share_is_filled_up_with_sequences_that_do_not_count(tmp_path):
    batches = TrainBatches(stream(tmp_path, 42), seq_len=8, seed=1)
    share, filled = (batches.batch(0, 5, Share(index=0, of=2), rows) for rows in (None, 4))
    assert filled.ids.shape == filled.labels.shape == (4, 8)
    np.testing.assert_array_equal(filled.ids[:2], share.ids)
    np.testing.assert_array_equal(filled.labels[:2], share.labels)
    assert (filled.labels[2:] == IGNORED).all() and filled.labels.dtype == np.int32
