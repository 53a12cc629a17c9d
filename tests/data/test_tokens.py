"""Token shards: what is written is read back, Megatron's files are read, and no defect passes."""

import struct

import numpy as np
import pytest

from mindmodel.data.tokens import TokenFile, TokenWriter
from mindmodel.errors import DataError


def index(code=8, lengths=(3, 2), offsets=(0, 6), bounds=(0, 1, 2), magic=b"MMIDIDX\x00\x00", version=1):
    """An index file as the format describes it."""
    header = magic + struct.pack("<QBQQ", version, code, len(lengths), len(bounds))
    arrays = ((lengths, "<i4"), (offsets, "<i8"), (bounds, "<i8"))
    return header + b"".join(np.array(values, dtype=dtype).tobytes() for values, dtype in arrays)


def shard(tmp_path, content, tokens=(1, 2, 3, 4, 5), dtype="<u2"):
    (tmp_path / "a.idx").write_bytes(content)
    (tmp_path / "a.bin").write_bytes(np.array(tokens, dtype=dtype).tobytes())
    return tmp_path / "a"


def test_documents_come_back_as_one_stream(tmp_path):
    with TokenWriter(tmp_path / "a", vocab_size=100) as writer:
        for ids in ([1, 2, 3], [], [99]):
            writer.add(ids)
    tokens = TokenFile(tmp_path / "a")
    assert (tokens.num_tokens, tokens.num_documents, tokens.max_token()) == (4, 3, 99)
    assert tokens.read(0, 4).tolist() == [1, 2, 3, 99]
    assert tokens.read(2, 3).tolist() == [3]
    assert tokens.read(0, 4).dtype == np.int32


def test_the_files_are_those_of_the_format(tmp_path):
    with TokenWriter(tmp_path / "a", vocab_size=100) as writer:
        writer.add([1, 2, 3])
        writer.add([4, 5])
    assert (tmp_path / "a.idx").read_bytes() == index()
    assert (tmp_path / "a.bin").read_bytes() == np.array([1, 2, 3, 4, 5], dtype="<u2").tobytes()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "<u2"), (65_537, "<i4")])
def test_ids_take_two_bytes_as_long_as_they_fit(tmp_path, vocab_size, dtype):
    with TokenWriter(tmp_path / "a", vocab_size) as writer:
        writer.add([0, vocab_size - 1])
    tokens = TokenFile(tmp_path / "a")
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.read(0, 2).tolist() == [0, vocab_size - 1]


@pytest.mark.parametrize(
    ("code", "dtype"), [(1, "<u1"), (2, "<i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")]
)
def test_every_integer_type_of_the_format_is_read(tmp_path, code, dtype):
    offsets = (0, 3 * np.dtype(dtype).itemsize)
    tokens = TokenFile(shard(tmp_path, index(code=code, offsets=offsets), dtype=dtype))
    assert tokens.read(0, 5).tolist() == [1, 2, 3, 4, 5]


def test_a_document_may_have_several_sequences_or_none(tmp_path):
    tokens = TokenFile(shard(tmp_path, index(bounds=(0, 2))))
    assert (tokens.num_documents, tokens.num_tokens) == (1, 5)
    assert TokenFile(shard(tmp_path, index(bounds=(0, 0, 2)))).num_documents == 2


def test_a_shard_without_tokens_is_a_shard(tmp_path):
    with TokenWriter(tmp_path / "a", vocab_size=100):
        pass
    tokens = TokenFile(tmp_path / "a")
    assert (tokens.num_tokens, tokens.num_documents, tokens.max_token()) == (0, 0, -1)
    assert tokens.read(0, 0).shape == (0,)


def test_nothing_has_its_name_before_all_is_written(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with TokenWriter(tmp_path / "a", vocab_size=100) as writer:
            writer.add([1])
            assert not (tmp_path / "a.bin").exists()
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_new_shard_takes_the_place_of_an_old_one(tmp_path):
    for ids in ([1, 2], [3]):
        with TokenWriter(tmp_path / "a", vocab_size=100) as writer:
            writer.add(ids)
    assert TokenFile(tmp_path / "a").read(0, 1).tolist() == [3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


@pytest.mark.parametrize("ids", [[5, 100], [-1, 5]])
def test_an_id_outside_the_vocabulary_is_not_written(tmp_path, ids):
    with pytest.raises(DataError, match=rf"a\.bin: document 0 has ids from {min(ids)} to {max(ids)}; with 100 tokens"):
        with TokenWriter(tmp_path / "a", vocab_size=100) as writer:
            writer.add(ids)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    prefix = shard(tmp_path, index())
    (tmp_path / "a.idx").unlink()
    with pytest.raises(DataError, match=r"a\.idx: there is no such file\. A token shard is a \.bin and an \.idx"):
        TokenFile(prefix)
    with pytest.raises(DataError, match=r"b\.bin: there is no such file"):
        TokenFile(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (index()[:20], r"has 20 bytes; the header alone has 34"),
        (index(magic=b"TNTIDX\x00\x00\x00"), r"starts with b'TNTIDX.*, not with b'MMIDIDX"),
        (index(version=2), "has version 2, not 1"),
        (index(code=7), "has dtype code 7; integers are 1, 2, 3, 4, 5, 8"),
        (index(bounds=()), "has no document bounds"),
        (index()[:-1], "has 81 bytes; 2 sequences and 3 bounds make 82"),
        (index() + b"\x00\x00", "has 84 bytes; 2 sequences and 3 bounds make 82"),
        (index()[:18] + b"\xff" * 16 + index()[34:], "has 82 bytes; 18,446,744,073,709,551,615 sequences"),
        (index(lengths=(6, -1)), "gives sequence 1 the length -1"),
        (index(offsets=(0, 4)), "puts sequence 1 at byte 4, not where the one before ends"),
        (index(offsets=(2, 6)), "puts sequence 0 at byte 2, not where"),
        (index(offsets=(0, 1 << 62)), "puts sequence 1 at byte 4611686018427387904, not where"),
        (index(bounds=(1, 2)), "has document bounds that do not rise from 0 to its 2 sequences"),
        (index(bounds=(0, 3)), "has document bounds that do not rise"),
        (index(bounds=(0, 2, 1, 2)), "has document bounds that do not rise"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, content, fault):
    with pytest.raises(DataError, match=rf"a\.idx: {fault}.*\. Copy or make the shard again\."):
        TokenFile(shard(tmp_path, content))


@pytest.mark.parametrize("num_tokens", [4, 6])
def test_tokens_that_the_index_does_not_speak_of_are_refused(tmp_path, num_tokens):
    with pytest.raises(DataError, match=rf"a\.bin: has {2 * num_tokens} bytes; its index speaks of 5 tokens, 10 bytes"):
        TokenFile(shard(tmp_path, index(), tokens=range(num_tokens)))


def test_a_negative_token_is_found(tmp_path):
    tokens = TokenFile(shard(tmp_path, index(code=3), tokens=[1, 2, 3, -7, 5], dtype="<i2"))
    with pytest.raises(DataError, match=r"a\.bin: token 3 is negative: -7\."):
        tokens.max_token()
