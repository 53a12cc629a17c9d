"""A token shard that is nearly right is refused, or every token in it can be read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import damaged_bytes
from mindmodel.data.tokens import TokenFile, TokenWriter
from mindmodel.errors import DataError


@pytest.fixture(scope="module")
def prefix():
    with tempfile.TemporaryDirectory() as path:
        with TokenWriter(Path(path) / "shard", vocab_size=300) as writer:
            for length in (1, 5, 20, 3):
                writer.add(range(length))
        yield Path(path) / "shard"


@given(data=st.data(), end=st.sampled_from([".idx", ".idx", ".bin"]))
def test_any_byte(prefix, data, end):
    path = prefix.with_suffix(end)
    whole = path.read_bytes()
    path.write_bytes(data.draw(damaged_bytes(whole)))
    try:
        tokens = TokenFile(prefix)
        largest = tokens.max_token()
        assert tokens.read(0, tokens.num_tokens).max(initial=-1) == largest
        assert len(tokens.read(0, tokens.num_tokens)) == tokens.num_tokens
    except DataError as error:
        assert str(prefix) in str(error)
    finally:
        path.write_bytes(whole)
