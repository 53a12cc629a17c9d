"""safetensors files, bfloat16 included: written one tensor at a time with a running checksum, read by a memory map."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NoReturn, Optional, TypeVar, Union

import ml_dtypes
import numpy as np

from mindmodel.errors import CheckpointError, MindModelError
from mindmodel.files import sync_file

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
DTYPE_OF_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
LENGTH_BYTES = 8
HEADER_MAX_BYTES = 100_000_000
CHUNK_BYTES = 4 * 2**20
METADATA = "__metadata__"
MAX_DIMS, MAX_ELEMENTS = 32, 2**60
SHORTER = "it became shorter while it was read"


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor whose shape and dtype are known now and whose numbers are made when they are read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


Tensor = Union[np.ndarray, LazyTensor]
AnyTensor = TypeVar("AnyTensor", bound=Tensor)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that was written: its bytes, and the SHA-256 of each tensor's numbers in hex."""

    num_bytes: int
    sha256: Mapping[str, str]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Optional[Mapping[str, str]] = None, *, new: bool = False
) -> Written:
    """Write a safetensors file and fsync it; one lazy tensor is in memory at a time.

    The caller sees to a temporary folder.

    Args:
        new: whether a file of that name must not be there yet.

    Raises:
        OSError: as the system reports it, such as a full disk.
        ValueError: if a lazy tensor is read with another shape or dtype than it announced.

    Source: the safetensors format: 8 bytes of header length, little-endian; a JSON header; the numbers without gaps.
        Wide dtypes come first, so that every tensor is aligned.
    """
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header, digests = _header_of(tensors, names, metadata), dict[str, Future[str]]()
    num_bytes = len(header) + sum(tensors[name].nbytes for name in names)
    with open(path, "xb" if new else "wb") as file, ThreadPoolExecutor(1) as hasher:
        file.write(header)
        for name in names:
            part = _bytes_of(tensors[name])
            digests[name] = hasher.submit(_sha256, part)  # beside writing and syncing, which leave Python's lock too
            file.write(part)
            if isinstance(tensors[name], LazyTensor):
                digests[name].result()  # its numbers go before the next come
        sync_file(file)
        return Written(num_bytes=num_bytes, sha256={name: digest.result() for name, digest in digests.items()})


def batches(tensors: Mapping[str, AnyTensor], max_bytes: int) -> Iterator[dict[str, AnyTensor]]:
    """Consecutive tensors of at most that size together; a larger one is alone."""
    batch, room = dict[str, AnyTensor](), max_bytes
    for name, tensor in tensors.items():
        if batch and tensor.nbytes > room:
            yield batch
            batch, room = {}, max_bytes
        batch[name] = tensor
        room -= tensor.nbytes
    if batch:
        yield batch


def _sha256(part: Union[bytes, memoryview]) -> str:
    return hashlib.sha256(part).hexdigest()


def _header_of(tensors: Mapping[str, Tensor], names: list[str], metadata: Optional[Mapping[str, str]]) -> bytes:
    """What stands before the numbers."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        code = CODES[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    array = tensor.read() if isinstance(tensor, LazyTensor) else tensor
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
        raise ValueError(f"{tensor.shape} {tensor.dtype} was announced, {array.shape} {array.dtype} was read")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class TensorFile:
    """A safetensors file whose header is checked in full when it is opened; tensors are views of a memory map.

    Args:
        path: the file.
        error: what to raise for a damaged file.

    Raises:
        error: if the file is missing, truncated, or its header is not one that describes the file exactly.
    """

    def __init__(self, path: Path, error: type[MindModelError] = CheckpointError) -> None:
        self.path, self._error = Path(path), error
        if not self.path.is_file():
            raise error(f"{path}: there is no such file.")
        if self.path.stat().st_size < LENGTH_BYTES:
            self._refuse("shorter than the length field")
        with open(self.path, "rb") as file:
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        header, self._data = self._header()
        self.metadata: dict[str, str] = header.pop(METADATA, {})
        self._entries = {name: self._entry(name, entry) for name, entry in header.items()}
        self._check_cover()

    @property
    def names(self) -> list[str]:
        """Tensor names, in the order in which they lie in the file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name][1]

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a tensor; `ml_dtypes.bfloat16` for BF16."""
        return self._entries[name][0]

    def array(self, name: str) -> np.ndarray:
        """A tensor as a read-only view of the file."""
        dtype, shape, start, end = self._entries[name]
        first, last = self._data + start, self._data + end
        return self._bytes[first:last].view(dtype).reshape(shape)

    def fetch(self, name: str, rows: Optional[slice] = None) -> None:
        """Have the system read the bytes of a tensor, or of some of its rows; it keeps them in memory for a while.

        On a disk a map brings them in much smaller pieces. Sent to the null device they are not copied, and one call
        that leaves Python's lock does for all.
        """
        _, shape, start, end = self._entries[name]
        if rows is not None and shape:
            row_bytes = (end - start) // max(1, shape[0])
            start, end = start + rows.start * row_bytes, start + rows.stop * row_bytes
        start, end = self._data + start, self._data + end
        with open(self.path, "rb") as file, open(os.devnull, "wb") as null:
            while start < end:
                try:
                    count = os.sendfile(null.fileno(), file.fileno(), start, end - start)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    return  # this file system cannot: then the map reads
                if not count:
                    self._refuse(SHORTER)
                start += count

    def sha256(self, name: str) -> str:
        """Checksum of a tensor's numbers; they are read, not mapped, as for fetch."""
        _, _, start, end = self._entries[name]
        digest, left = hashlib.sha256(), end - start
        buffer = memoryview(bytearray(min(CHUNK_BYTES, left)))
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._data + start)
            while left:
                if not (count := file.readinto(buffer[: min(left, len(buffer))])):
                    self._refuse(SHORTER)
                left -= count
                digest.update(buffer[:count])
        return digest.hexdigest()

    def lazy(self, name: str) -> LazyTensor:
        """A tensor that is read when it is used."""
        return LazyTensor(shape=self.shape(name), dtype=self.dtype(name), read=lambda: self.array(name))

    def _refuse(self, fault: str) -> NoReturn:
        raise self._error(f"{self.path}: no whole safetensors file: {fault}. Copy or write it again.")

    def _header(self) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(self._bytes[:LENGTH_BYTES].tobytes(), "little")
        end = LENGTH_BYTES + length
        if length > HEADER_MAX_BYTES or end > len(self._bytes):
            self._refuse(f"a header of {length} bytes is announced in a file of {len(self._bytes)}")
        try:
            header = json.loads(self._bytes[LENGTH_BYTES:end].tobytes().decode())
        except (ValueError, RecursionError) as fault:
            self._refuse(f"the header is not JSON ({fault})")
        if not isinstance(header, dict) or not _is_text_map(header.get(METADATA, {})):
            self._refuse("the header is not an object of tensors with text metadata")
        return header, end

    def _entry(self, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
        """Dtype, shape, start and end of one tensor, checked against each other."""
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            self._refuse(f"'{name}' needs dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            self._refuse(f"'{name}' has dtype {dtype!r}, known are {', '.join(DTYPES)}")
        if not _is_shape(shape) or not _are_counts(offsets) or len(offsets) != 2:
            self._refuse(f"'{name}' has shape {shape!r} and offsets {offsets!r}")
        start, end = offsets
        if end - start != math.prod(shape) * DTYPES[dtype].itemsize:
            self._refuse(f"'{name}' of shape {shape} and dtype {dtype} cannot fill bytes {start} to {end}")
        return DTYPES[dtype], tuple(shape), start, end

    def _check_cover(self) -> None:
        """The tensors must lie end to end and fill the file."""
        self._entries = dict(sorted(self._entries.items(), key=lambda item: item[1][2:]))
        reached = 0
        for name, (_, _, start, end) in self._entries.items():
            if start != reached:
                self._refuse(f"'{name}' begins at byte {start} of the numbers, the tensor before it ends at {reached}")
            reached = end
        if self._data + reached != len(self._bytes):
            self._refuse(f"{self._data + reached} bytes are described, the file has {len(self._bytes)}")


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _is_shape(value: Any) -> bool:
    """Whether NumPy can have this shape, an empty one included."""
    return _are_counts(value) and len(value) <= MAX_DIMS and math.prod(max(size, 1) for size in value) < MAX_ELEMENTS
