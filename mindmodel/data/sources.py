"""Raw text: Python's standard library, files, folders and globs become documents, in an order that never changes."""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

from mindmodel.errors import DataError

TEXT_SUFFIXES = (".txt", ".md", ".py", ".jsonl")
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text that a model reads as a whole."""

    name: str
    text: str


def documents(source: Sequence[str]) -> Iterator[Document]:
    """The documents of a source, those of only whitespace left out.

    Args:
        source: entries, read in this order. `stdlib`: the Python files of the running interpreter's standard library,
            without its tests. A `.jsonl` file: one document a line, in its key "text". Any other file: one document.
            A folder: all .txt, .md, .py and .jsonl files below it, sorted. A glob (`**` for any depth): its files,
            sorted.

    Raises:
        DataError: if a file is missing or is not UTF-8, a JSON line has no text, an entry matches nothing, or there is
            no document at all.
    """
    empty = True
    for entry in source:
        for document in _stdlib() if entry == "stdlib" else _documents_of_entry(entry):
            if document.text.strip():
                empty = False
                yield document
    if empty:
        raise DataError(f"no text in {', '.join(source) or 'an empty list'}. Name files that hold some.")


def _stdlib() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _files_below(root, (".py",), skip=NOT_STDLIB):
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:  # a few files are there to show another encoding
            continue
        yield Document(name=f"stdlib/{path.relative_to(root).as_posix()}", text=text)


def _documents_of_entry(entry: str) -> Iterator[Document]:
    for path in files_of_entry(entry):
        if path.suffix == ".jsonl":
            yield from _json_lines(path)
        else:
            yield _whole_file(path)


def files_of_entry(entry: str) -> list[Path]:
    """The files that an entry of a source other than `stdlib` means, sorted.

    Raises:
        DataError: if there is none.
    """
    path = Path(entry)
    if path.is_dir():
        files = _files_below(path, TEXT_SUFFIXES)
        if not files:
            raise DataError(f"{entry}: the folder holds no {', '.join(TEXT_SUFFIXES)} file. Name the files by a glob.")
        return files
    if path.is_file():
        return [path]
    if not glob.has_magic(entry):
        raise DataError(f"{entry}: there is no such file or folder. A source is stdlib, a file, a folder or a glob.")
    files = [Path(match) for match in sorted(glob.glob(entry, recursive=True)) if os.path.isfile(match)]
    if not files:
        raise DataError(f"{entry}: the glob matches no file. `**` stands for folders of any depth.")
    return files


def _files_below(root: Path, suffixes: tuple[str, ...], skip: frozenset[str] = frozenset()) -> list[Path]:
    """Files below a folder, sorted by their relative path; folders whose name is in `skip` are not entered."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skip]
        found += [Path(folder, name) for name in names if name.endswith(suffixes)]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _whole_file(path: Path) -> Document:
    try:
        return Document(name=path.as_posix(), text=path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}). Convert the file to UTF-8, or leave it out."
        ) from error


def _json_lines(path: Path) -> Iterator[Document]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Document(name=f"{path.as_posix()}:{number}", text=_text_of_line(line, f"{path}, line {number}"))


def _text_of_line(line: bytes, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{where}: is not JSON ({error}). A line is an object such as {{"text": "..."}}.') from error
    if not isinstance(value, dict):
        raise DataError(f'{where}: is a JSON {type(value).__name__}. A line is an object such as {{"text": "..."}}.')
    text = value.get("text")
    if not isinstance(text, str):
        raise DataError(f'{where}: has no string in the key "text". Its keys: {", ".join(value) or "none"}.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} of the text is half of a surrogate pair, which UTF-8 cannot hold. "
            "Write it as \\ufffd."
        ) from error
    return text
