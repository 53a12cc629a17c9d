"""The index of a checkpoint: how far the run was, which files belong to it, where every tensor's numbers lie.

index.json names a tensor that lies whole in one file with that file. Slices of the others are rows of a table beside
it, which the checksum in index.json seals.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, TypeVar

import numpy as np

from mindmodel.checkpoint.blocks import Shape, fault_of, whole
from mindmodel.checkpoint.slices import Slice, Slices, Table
from mindmodel.errors import CheckpointError
from mindmodel.files import file_inside, read_json, sha256_of, stays_inside, write_text_safely
from mindmodel.tensor_file import DTYPE_OF_NAME, TensorFile

FORMAT = "mindmodel-checkpoint-2"
INDEX_NAME, TABLE_NAME = "index.json", "slices.safetensors"
COUNT_LIMIT = 2**63
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Global shape and dtype (NumPy's name) of a tensor, and the blocks that make it up."""

    shape: Shape
    dtype: str
    slices: Slices

    @property
    def whole_slice(self) -> Optional[Slice]:
        """The only slice, where the tensor lies whole in one file."""
        return self.slices[0] if len(self.slices) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Index:
    """What index.json and the table say.

    Attributes:
        step: optimizer steps done.
        samples: sequences consumed; the position in the data.
        tokens: tokens consumed.
        layout: degrees dp, tp, pp and cp of the run that wrote it.
        recipe: the resolved recipe.
        versions: of the software that wrote it.
        random: state of what draws random numbers.
        files: bytes, by name inside the folder.
        tensors: by name.
    """

    step: int
    samples: int
    tokens: int
    layout: Mapping[str, int]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    random: Mapping[str, Any]
    files: Mapping[str, int]
    tensors: Mapping[str, TensorEntry]

    def write(self, folder: Path) -> None:
        """Write the table, where a tensor is cut, and then index.json, into a folder; both are synced.

        Raises:
            OSError: as the system reports it.
        """
        content = self._content()
        if rows := self._rows_of_cut_tensors():
            Table.joined(rows).write(folder / TABLE_NAME)
            content["slices"] = {"file": TABLE_NAME, "sha256": sha256_of(folder / TABLE_NAME)}
        content["sha256"] = _checksum(content)
        lines = ",\n".join(f'"{name}": {_lines(value)}' for name, value in content.items())
        write_text_safely(folder / INDEX_NAME, "{\n" + lines + "\n}\n")

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
            "files": dict(self.files),
            "tensors": {name: _to_dict(tensor) for name, tensor in self.tensors.items()},
        }

    def _rows_of_cut_tensors(self) -> list[Table]:
        """Numbered by the tensors' and the files' places in index.json."""
        numbers = {name: number for number, name in enumerate(self.files)}
        cut = ((at, entry) for at, entry in enumerate(self.tensors.values()) if entry.whole_slice is None)
        return [entry.slices.numbered(at, numbers) for at, entry in cut]

    def fault(self) -> str:
        """What cannot be true in it, such as slices that do not make up a tensor; empty when all can."""
        for name in self.files:
            if not stays_inside(name):
                return f"the file name {name!r} leads out of the checkpoint's folder"
        found = ((name, _fault_of(tensor)) for name, tensor in self.tensors.items())
        return next((f"tensor '{name}': {fault}" for name, fault in found if fault), "")

    @classmethod
    def read(cls, folder: Path) -> Index:
        """The index of the checkpoint in a folder.

        Raises:
            CheckpointError: if it is missing, of another format, was altered, lacks a part, names a file outside its
                folder, or its slices do not make up the tensors.
        """
        where = folder / INDEX_NAME
        content = read_json(where, CheckpointError)
        if content.get("format") != FORMAT:
            raise CheckpointError(
                f"{where}: format {content.get('format')!r}; this version of mindmodel reads '{FORMAT}'."
            )
        body = {name: value for name, value in content.items() if name != "sha256"}
        if content.get("sha256") != _checksum(body):
            raise CheckpointError(f"{where}: altered since it was written: the checksum in it is that of another text.")
        try:
            index = _parse(body, _read_table(body.get("slices"), folder))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{where}: a part is missing or of the wrong kind: {error!r}.") from error
        if fault := index.fault():
            raise CheckpointError(f"{where}: {fault}.")
        return index


def _to_dict(tensor: TensorEntry) -> dict[str, Any]:
    """A tensor as it stands in index.json."""
    shown = {"shape": tensor.shape, "dtype": tensor.dtype}
    if (part := tensor.whole_slice) is None:
        return {**shown, "slices": len(tensor.slices)}
    return {**shown, "file": part.file, "sha256": part.sha256}


def _lines(value: Any) -> str:
    """JSON of a value; of an object, each member on a line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(member)}" for name, member in value.items()) + "\n}"


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 over the JSON without spaces; in the order in which it stands, since the table counts by it."""
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _read_table(seal: Optional[Mapping[str, Any]], folder: Path) -> Table:
    """The table that index.json names; an empty one where it names none."""
    if seal is None:
        return Table.of([])
    path = file_inside(folder, seal["file"], CheckpointError)
    if (found := sha256_of(path)) != seal["sha256"]:
        raise CheckpointError(f"{path}: damaged: SHA-256 {found}, the index says {seal['sha256']}.")
    return Table.read(TensorFile(path))


def _parse(body: Mapping[str, Any], table: Table) -> Index:
    files = _each(_count, body["files"])
    return Index(
        step=_count(body["step"]),
        samples=_count(body["samples"]),
        tokens=_count(body["tokens"]),
        layout=_each(_count, body["layout"]),
        recipe=dict(body["recipe"]),
        versions=_each(_text, body["versions"]),
        random=dict(body["random"]),
        files=files,
        tensors=dict(_tensors(body["tensors"], table, files)),
    )


def _tensors(entries: Mapping[str, Any], table: Table, files: Mapping[str, int]) -> Iterator[tuple[str, TensorEntry]]:
    counts = [_count(entry.get("slices", 0)) for entry in entries.values()]
    if not np.array_equal(table.tensor, np.repeat(np.arange(len(counts)), counts)):
        raise ValueError(f"the table of {len(table)} slices is not that of {sum(counts)} in these tensors")
    if len(unknown := table.file[(table.file < 0) | (table.file >= len(files))]):
        raise ValueError(f"the table names file {unknown[0]} of {len(files)}")
    shapes = [_shape(entry["shape"]) for entry in entries.values()]
    parts, names = table.by_tensor([len(shape) for shape in shapes]), tuple(files)
    for (name, entry), shape, part in zip(entries.items(), shapes, parts):
        slices = Slices(part, names) if "slices" in entry else Slices.of(_whole_slice(entry, shape, files))
        yield name, TensorEntry(shape=shape, dtype=_text(entry["dtype"]), slices=slices)


def _whole_slice(entry: Mapping[str, Any], shape: Shape, files: Mapping[str, int]) -> Slice:
    if entry["file"] not in files:
        raise ValueError(f"'{entry['file']}' is not a file of the checkpoint")
    block = whole(shape)
    return Slice(file=entry["file"], offset=block.offset, shape=block.shape, sha256=_text(entry["sha256"]))


def _each(parse: Callable[[Any], T], mapping: Mapping[str, Any]) -> dict[str, T]:
    return {name: parse(value) for name, value in mapping.items()}


def _shape(value: Any) -> Shape:
    return tuple(_count(size) for size in value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < COUNT_LIMIT:
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _fault_of(tensor: TensorEntry) -> str:
    """What is wrong with a tensor's entry; empty when nothing is."""
    if tensor.dtype not in DTYPE_OF_NAME:
        return f"dtype '{tensor.dtype}' is unknown"
    rows = tensor.slices.table
    if not len(rows):
        return "it has no slice"
    beyond = (rows.offset < 0) | (rows.shape < 0) | (rows.shape > np.array(tensor.shape, int) - rows.offset)
    if beyond.any():
        part = tensor.slices[int(np.flatnonzero(beyond.any(axis=1))[0])]
        return f"the slice of shape {part.shape} at {part.offset} does not lie inside {tensor.shape}"
    if fault := fault_of(rows.offset, rows.shape, tensor.shape):
        return fault
    return "two of its slices are in one file" if len(np.unique(rows.file)) < len(rows) else ""
