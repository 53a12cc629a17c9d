"""The held-out split: by text, near the share asked for, and no side empty when that can be."""

import pytest

from mindmodel.data.split import split_documents, text_hash


def sides(texts, heldout):
    split = split_documents(map(text_hash, texts), heldout)
    return [split.is_heldout(text) for text in texts]


def test_a_text_has_the_same_hash_everywhere():
    assert text_hash("é") == 14635220546840893743


@pytest.mark.parametrize("heldout", [0.05, 0.5, 0.9])
def test_the_share_is_about_what_was_asked(heldout):
    chosen = sides([f"text {number}" for number in range(4000)], heldout)
    assert sum(chosen) / 4000 == pytest.approx(heldout, abs=0.03)


def test_other_documents_do_not_change_the_side_of_a_text():
    texts = [f"text {number}" for number in range(200)]
    assert sides(texts, 0.2)[100:] == sides(texts[100:], 0.2)


def test_equal_texts_are_on_one_side():
    texts = [f"text {number % 7}" for number in range(70)]
    assert sides(texts, 0.5)[:7] * 10 == sides(texts, 0.5)


@pytest.mark.parametrize("heldout", [1e-9, 1 - 1e-9])
def test_of_few_documents_the_one_with_the_smallest_hash_fills_the_empty_side(heldout):
    texts = ["a", "b", "c"]
    smallest = min(texts, key=text_hash)
    assert sides(texts, heldout) == [(text == smallest) == (heldout < 0.5) for text in texts]


@pytest.mark.parametrize("heldout", [0.0, 1e-9, 1 - 1e-9])
def test_one_text_is_for_training_however_often_it_occurs(heldout):
    assert sides(["a"], heldout) == [False]
    assert sides(["a", "a", "a"], heldout) == [False] * 3


def test_nothing_is_held_out_unless_asked():
    assert not any(sides([f"text {number}" for number in range(100)], 0.0))
