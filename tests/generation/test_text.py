"""Prompts and answers as text."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.data.tokenizer import train_tokenizer
from mindmodel.errors import DataError

TOKENIZER = train_tokenizer(["one two three\n" * 9], 260)


class Scripted:
    """A generator that says what it was told to."""

    def __init__(self, ids):
        self.ids = ids

    def stream(self, prompts, num_tokens, sampling, stop):
        for number in self.ids[:num_tokens]:
            yield np.array([number], np.int32)


@pytest.fixture
def text(runtime):
    from mindmodel.generation import text

    return text


def test_an_empty_prompt_begins_a_new_document(text):
    assert text.prompt_ids(TOKENIZER, "") == [TOKENIZER.eod_id]
    assert text.prompt_ids(TOKENIZER, "one") == TOKENIZER.encode("one")


def test_a_prompt_without_a_token(text):
    class Deaf:
        @staticmethod
        def encode(prompt):
            return []

    with pytest.raises(DataError, match="prompt 'x': the tokenizer has no token for it. Use another prompt."):
        text.prompt_ids(Deaf, "x")


def test_a_prompt_that_is_not_text(text):
    with pytest.raises(DataError, match="character 1 is no UTF-8. Use text."):
        text.prompt_ids(TOKENIZER, "a\udcff")


def test_characters_of_several_tokens_come_whole(text):
    ids = TOKENIZER.encode("aé漢b")
    pieces = list(text.continue_text(Scripted(ids), TOKENIZER, [1], len(ids), None))
    assert "".join(pieces) == "aé漢b" and not any("\ufffd" in piece for piece in pieces)


def test_an_answer_ends_with_the_document(text):
    ids = [*TOKENIZER.encode("one"), TOKENIZER.eod_id, *TOKENIZER.encode("two")]
    assert "".join(text.continue_text(Scripted(ids), TOKENIZER, [1], len(ids), None)) == "one"


def test_an_unfinished_character_at_the_end_is_shown_as_such(text):
    ids = TOKENIZER.encode("a漢")[:-1]
    assert "".join(text.continue_text(Scripted(ids), TOKENIZER, [1], len(ids), None)) == "a\ufffd"
