"""Token shards on disk: the `.bin` and `.idx` pair of Megatron-LM, written as a stream and read by memory mapping.

The index, little-endian: magic, u64 version, u8 dtype code, u64 number of sequences S, u64 number of document bounds D,
int32 lengths [S], int64 byte offsets [S], int64 bounds [D]: document k is sequences bounds[k] to bounds[k + 1].

Source: `IndexedDataset` of Megatron-LM.
"""

from __future__ import annotations

import os
import struct
from array import array
from pathlib import Path
from types import TracebackType
from typing import Iterator, Optional, Sequence, Union

import numpy as np

from mindmodel.errors import DataError
from mindmodel.files import sync_file, temporary_of

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats, which are no tokens
CHUNK_TOKENS = 1 << 20

Prefix = Union[str, Path]


def shard_paths(prefix: Prefix) -> tuple[Path, Path]:
    """The two files of a shard: tokens and index."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx")


class TokenWriter:
    """Writes documents of token ids, one by one; the two files get their names only when the `with` block ends well.

    Args:
        prefix: path of the two files without .bin and .idx.
        vocab_size: ids are below it. Up to 65,536 they take two bytes each, else four.
    """

    def __init__(self, prefix: Prefix, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._code = 8 if vocab_size <= 1 << 16 else 4
        self._targets = shard_paths(prefix)
        self._temporaries = tuple(map(temporary_of, self._targets))
        self._lengths = array("q")

    def __enter__(self) -> TokenWriter:
        self._stream = open(self._temporaries[0], "wb")
        return self

    def add(self, ids: Sequence[int]) -> None:
        """Append one document.

        Raises:
            DataError: if an id is negative or not below the vocabulary size.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._vocab_size:
            raise DataError(
                f"{self._targets[0]}: document {len(self._lengths)} has ids from {tokens.min()} to {tokens.max()}; "
                f"with {self._vocab_size} tokens they are 0 to {self._vocab_size - 1}. Use the tokenizer's vocab_size."
            )
        self._stream.write(tokens.astype(DTYPES[self._code]).tobytes())
        self._lengths.append(tokens.size)

    def __exit__(
        self,
        exc_type: Optional[type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        with self._stream:
            if exc_type is None:
                sync_file(self._stream)
        if exc_type is None:
            self._finish()
        for path in self._temporaries:
            path.unlink(missing_ok=True)

    def _finish(self) -> None:
        with open(self._temporaries[1], "wb") as index:
            index.write(self._index())
            sync_file(index)
        self._targets[1].unlink(missing_ok=True)  # an older index must never meet the new tokens
        for temporary, target in zip(self._temporaries, self._targets):
            os.replace(temporary, target)

    def _index(self) -> bytes:
        lengths = np.array(self._lengths, dtype=np.int64)
        offsets = (np.cumsum(lengths) - lengths) * np.dtype(DTYPES[self._code]).itemsize
        bounds = np.arange(len(lengths) + 1)
        header = HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(bounds))
        arrays = (lengths.astype("<i4"), offsets.astype("<i8"), bounds.astype("<i8"))
        return header + b"".join(values.tobytes() for values in arrays)


class TokenFile:
    """The tokens of a shard as one stream, memory-mapped.

    Args:
        prefix: path of the two files without .bin and .idx.

    Raises:
        DataError: if a file is missing, or the two are not a sound shard whose sequences follow each other.
    """

    def __init__(self, prefix: Prefix) -> None:
        self._bin, self._idx = shard_paths(prefix)
        for path in (self._bin, self._idx):
            if not path.is_file():
                raise DataError(f"{path}: there is no such file. A token shard is a .bin and an .idx file.")
        self.dtype, self._num_sequences, self._num_bounds = self._read_header()
        self.num_documents = self._num_bounds - 1
        self.num_tokens = self._check_index()
        self._tokens = self._map_tokens()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop - 1 of the stream, int32 [stop - start]."""
        return np.array(self._tokens[start:stop], dtype=np.int32)

    def chunks(self) -> Iterator[np.ndarray]:
        """All tokens in order, some at a time, in the file's dtype."""
        for start in range(0, self.num_tokens, CHUNK_TOKENS):
            yield self._tokens[start:start + CHUNK_TOKENS]

    def max_token(self) -> int:
        """The largest token id, -1 if there is none. Reads all tokens.

        Raises:
            DataError: if an id is negative.
        """
        largest = -1
        for number, chunk in enumerate(self.chunks()):
            if chunk.min() < 0:
                place = number * CHUNK_TOKENS + int(chunk.argmin())
                raise DataError(f"{self._bin}: token {place} is negative: {chunk.min()}.")
            largest = max(largest, int(chunk.max()))
        return largest

    def _read_header(self) -> tuple[np.dtype, int, int]:
        with open(self._idx, "rb") as stream:
            content = stream.read(HEADER.size)
        if len(content) < HEADER.size:
            raise self._broken(f"has {len(content)} bytes; the header alone has {HEADER.size}")
        magic, version, code, num_sequences, num_bounds = HEADER.unpack(content)
        if magic != MAGIC:
            raise self._broken(f"starts with {magic!r}, not with {MAGIC!r}")
        if version != VERSION:
            raise self._broken(f"has version {version}, not {VERSION}")
        if code not in DTYPES:
            raise self._broken(f"has dtype code {code}; integers are {', '.join(map(str, DTYPES))}")
        if num_bounds < 1:
            raise self._broken("has no document bounds")
        expected = HEADER.size + 12 * num_sequences + 8 * num_bounds
        if self._idx.stat().st_size != expected:
            raise self._broken(
                f"has {self._idx.stat().st_size:,} bytes; {num_sequences:,} sequences and {num_bounds:,} bounds "
                f"make {expected:,}"
            )
        return np.dtype(DTYPES[code]), num_sequences, num_bounds

    def _check_index(self) -> int:
        """Compare lengths, offsets, bounds and the size of the tokens' file; gives the number of tokens."""
        count = self._num_sequences
        index = np.memmap(self._idx, mode="r", dtype=np.uint8)[HEADER.size:]
        lengths = index[:4 * count].view("<i4").astype(np.int64)
        offsets = index[4 * count:12 * count].view("<i8")
        bounds = index[12 * count:].view("<i8")
        if count and lengths.min() < 0:
            raise self._broken(f"gives sequence {lengths.argmin()} the length {lengths.min()}")
        astray = np.flatnonzero(offsets != (np.cumsum(lengths) - lengths) * self.dtype.itemsize)
        if astray.size:
            raise self._broken(f"puts sequence {astray[0]} at byte {offsets[astray[0]]}, not where the one before ends")
        if bounds[0] != 0 or bounds[-1] != count or (np.diff(bounds) < 0).any():
            raise self._broken(f"has document bounds that do not rise from 0 to its {count} sequences")
        return int(lengths.sum())

    def _map_tokens(self) -> np.ndarray:
        expected = self.num_tokens * self.dtype.itemsize
        if self._bin.stat().st_size != expected:
            raise DataError(
                f"{self._bin}: has {self._bin.stat().st_size:,} bytes; its index speaks of {self.num_tokens:,} tokens, "
                f"{expected:,} bytes. Copy or make the shard again."
            )
        if not expected:  # an empty file cannot be mapped
            return np.empty(0, dtype=self.dtype)
        return np.memmap(self._bin, mode="r", dtype=self.dtype)

    def _broken(self, fault: str) -> DataError:
        return DataError(f"{self._idx}: {fault}. Copy or make the shard again.")
