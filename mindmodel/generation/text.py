"""Text in, text out: prompts and answers around a Generator."""

from __future__ import annotations

from typing import Iterator

from mindmodel.data.tokenizer import Tokenizer
from mindmodel.errors import DataError
from mindmodel.generation.sample import Generator, Sampling


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Tokens of a prompt; an empty one begins a new document.

    Raises:
        DataError: if it is not UTF-8, or the tokenizer makes nothing of it.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"prompt {prompt!r}: character {error.start} is no UTF-8. Use text.") from error
    ids = tokenizer.encode(prompt) if prompt else [tokenizer.eod_id]
    if not ids:
        raise DataError(f"prompt {prompt!r}: the tokenizer has no token for it. Use another prompt.")
    return ids


def continue_text(
    generator: Generator, tokenizer: Tokenizer, ids: list[int], num_tokens: int, sampling: Sampling
) -> Iterator[str]:
    """Pieces of the answer as they come, until the end of the document; characters are given out whole."""
    new: list[int] = []
    shown = ""
    for tokens in generator.stream([ids], num_tokens, sampling, stop=tokenizer.eod_id):
        if tokens[0] == tokenizer.eod_id:
            break
        new.append(int(tokens[0]))
        text = tokenizer.decode(new)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(new)[len(shown) :]
