"""The index of a checkpoint: how far the run was, which files belong to it, where every tensor's numbers lie."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, TypeVar, Union

from mindmodel.checkpoint.blocks import Block, Shape, fault_of
from mindmodel.checkpoint.tensor_file import DTYPE_OF_NAME
from mindmodel.errors import CheckpointError
from mindmodel.files import stays_inside

FORMAT = "mindmodel-checkpoint-1"
INDEX_NAME = "index.json"
INDEX_MAX_BYTES = 2**30
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the checkpoint. The checksum of the whole is empty where each slice in it has its own."""

    bytes: int
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Slice(Block):
    """A block of a tensor, the file that holds it under the tensor's name, and the checksum of its numbers.

    In a checkpoint of an early version the checksum is empty and the file has one.
    """

    file: str
    sha256: str = ""


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
        """The text of index.json, with a checksum over everything in it; a file and a tensor stand on a line each."""
        content = self._content()
        content["sha256"] = _checksum(content)
        return "{\n" + ",\n".join(f'"{name}": {_lines(value)}' for name, value in content.items()) + "\n}\n"

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": self.step,
            "samples": self.samples,
            "tokens": self.tokens,
            "layout": dict(self.layout),
            "recipe": dict(self.recipe),
            "versions": dict(self.versions),
            "random": dict(self.random),
            "files": {name: _with_checksum(entry, bytes=entry.bytes) for name, entry in self.files.items()},
            "tensors": {name: tensor_to_dict(tensor) for name, tensor in self.tensors.items()},
        }

    def fault(self) -> str:
        """What cannot be true in it, such as slices that do not make up a tensor; empty when all can."""
        for name in self.files:
            if not stays_inside(name):
                return f"the file name {name!r} leads out of the checkpoint's folder"
        found = ((name, _fault_of(tensor, self.files)) for name, tensor in self.tensors.items())
        return next((f"tensor '{name}': {fault}" for name, fault in found if fault), "")

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
        if fault := index.fault():
            raise CheckpointError(f"{where}: {fault}.")
        return index


def tensor_to_dict(tensor: TensorEntry) -> dict[str, Any]:
    """A tensor as it stands in JSON."""
    slices = [_with_checksum(part, file=part.file, offset=part.offset, shape=part.shape) for part in tensor.slices]
    return {"shape": tensor.shape, "dtype": tensor.dtype, "slices": slices}


def _with_checksum(entry: Union[FileEntry, Slice], **fields: Any) -> dict[str, Any]:
    return {**fields, "sha256": entry.sha256} if entry.sha256 else fields


def _lines(value: Any) -> str:
    """JSON of a value; of an object, each member on a line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(member)}" for name, member in value.items()) + "\n}"


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
    return FileEntry(bytes=_count(value["bytes"]), sha256=_text(value.get("sha256", "")))


def _tensor(value: Mapping[str, Any]) -> TensorEntry:
    slices = tuple(_slice(item) for item in value["slices"])
    return TensorEntry(shape=_shape(value["shape"]), dtype=_text(value["dtype"]), slices=slices)


def _slice(value: Mapping[str, Any]) -> Slice:
    return Slice(
        file=_text(value["file"]),
        offset=_shape(value["offset"]),
        shape=_shape(value["shape"]),
        sha256=_text(value.get("sha256", "")),
    )


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
        if not (part.sha256 or files[part.file].sha256):
            return f"its slice in '{part.file}' has no checksum"
    if fault := fault_of(tensor.slices, tensor.shape):
        return fault
    num_files = len({part.file for part in tensor.slices})
    return "two of its slices are in one file" if num_files < len(tensor.slices) else ""
