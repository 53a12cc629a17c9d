"""The index of a checkpoint: how far the run was, which files belong to it, where every tensor's numbers lie."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, TypeVar

from mindmodel.checkpoint.tensor_file import DTYPE_OF_NAME
from mindmodel.errors import CheckpointError
from mindmodel.files import stays_inside

FORMAT = "mindmodel-checkpoint-1"
INDEX_NAME = "index.json"
Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A block of a tensor: the file that holds it under the tensor's name, its first element and its shape."""

    file: str
    offset: Shape
    shape: Shape

    def overlaps(self, other: Slice) -> bool:
        """Whether two blocks of the same tensor share an element."""
        dims = zip(self.offset, self.shape, other.offset, other.shape)
        return all(start < begin + size and begin < start + length for start, length, begin, size in dims)


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Global shape and dtype (NumPy's name) of a tensor, and the blocks that make it up."""

    shape: Shape
    dtype: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True, kw_only=True)
class Index:
    """What index.json says.

    Attributes:
        step: optimizer steps done.
        samples: sequences consumed; the position in the data.
        tokens: tokens consumed.
        layout: degrees dp, tp, pp and cp of the run that wrote it.
        recipe: the resolved recipe.
        versions: of the software that wrote it.
        random: state of what draws random numbers.
        files: by name inside the folder.
        tensors: by name.
    """

    step: int
    samples: int
    tokens: int
    layout: Mapping[str, int]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    random: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    tensors: Mapping[str, TensorEntry]

    def to_json(self) -> str:
        """The text of index.json, with a checksum over everything in it."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps({**content, "sha256": _checksum(content)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Index:
        """The index in the JSON object `content`, which was read from the file `where`.

        Raises:
            CheckpointError: if it is of another format, was altered, lacks a part, names a file outside its folder, or
                its slices do not make up the tensors.
        """
        if content.get("format") != FORMAT:
            raise CheckpointError(
                f"{where}: format {content.get('format')!r}; this version of mindmodel reads '{FORMAT}'."
            )
        body = {name: value for name, value in content.items() if name != "sha256"}
        if content.get("sha256") != _checksum(body):
            raise CheckpointError(f"{where}: altered since it was written: the checksum in it is that of another text.")
        try:
            index = _parse(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{where}: a part is missing or of the wrong kind: {error!r}.") from error
        for name in index.files:
            if not stays_inside(name):
                raise CheckpointError(f"{where}: the file name {name!r} leads out of the checkpoint's folder.")
        for name, tensor in index.tensors.items():
            if fault := _fault_of(tensor, index.files):
                raise CheckpointError(f"{where}: tensor '{name}': {fault}.")
        return index


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parse(body: Mapping[str, Any]) -> Index:
    return Index(
        step=_count(body["step"]),
        samples=_count(body["samples"]),
        tokens=_count(body["tokens"]),
        layout=_each(_count, body["layout"]),
        recipe=dict(body["recipe"]),
        versions=_each(_text, body["versions"]),
        random=dict(body["random"]),
        files=_each(_file, body["files"]),
        tensors=_each(_tensor, body["tensors"]),
    )


def _each(parse: Callable[[Any], T], mapping: Mapping[str, Any]) -> dict[str, T]:
    return {name: parse(value) for name, value in mapping.items()}


def _file(value: Mapping[str, Any]) -> FileEntry:
    return FileEntry(bytes=_count(value["bytes"]), sha256=_text(value["sha256"]))


def _tensor(value: Mapping[str, Any]) -> TensorEntry:
    slices = tuple(_slice(item) for item in value["slices"])
    return TensorEntry(shape=_shape(value["shape"]), dtype=_text(value["dtype"]), slices=slices)


def _slice(value: Mapping[str, Any]) -> Slice:
    return Slice(file=_text(value["file"]), offset=_shape(value["offset"]), shape=_shape(value["shape"]))


def _shape(value: Any) -> Shape:
    return tuple(_count(size) for size in value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _fault_of(tensor: TensorEntry, files: Mapping[str, FileEntry]) -> str:
    """What is wrong with a tensor's entry; empty when nothing is."""
    if tensor.dtype not in DTYPE_OF_NAME:
        return f"dtype '{tensor.dtype}' is unknown"
    if not tensor.slices:
        return "it has no slice"
    for part in tensor.slices:
        if part.file not in files:
            return f"its slice is in '{part.file}', which is not a file of the checkpoint"
        if not len(part.offset) == len(part.shape) == len(tensor.shape) or any(
            start + size > whole for start, size, whole in zip(part.offset, part.shape, tensor.shape)
        ):
            return f"the slice of shape {part.shape} at {part.offset} does not lie inside {tensor.shape}"
    if any(one.overlaps(other) for one, other in itertools.combinations(tensor.slices, 2)):
        return "two slices overlap"
    if sum(math.prod(part.shape) for part in tensor.slices) != math.prod(tensor.shape):
        return f"its slices do not make up the shape {tensor.shape}"
    return ""
