"""The one way to read JSON, to write a file or folder so that it is whole or absent, and to check what a file holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Iterator, Mapping

from mindmodel.errors import MindModelError

JSON_MAX_BYTES = 256 * 2**20
CHUNK_BYTES = 2**20


@contextmanager
def _place_named(path: Path) -> Iterator[None]:
    """A full disk's own error does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def write_file_safely(path: Path) -> Iterator[Path]:
    """Fill and sync the file that is given; when the block ends well it becomes `path`, which is never half-written.

    Raises:
        OSError: as the system reports it; the file of that name is then as it was.
    """
    path = Path(path)
    temporary = temporary_of(path, str(os.getpid()))
    try:
        with _place_named(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_safely(path: Path, text: str) -> None:
    """Write a UTF-8 text, as write_file_safely."""
    with write_file_safely(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        sync_file(file)


def write_texts_safely(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write files by name into a folder, which is made if it is not there; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text_safely(folder / name, text)
    return [str(folder / name) for name in texts]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content byte for byte and fsync it; the caller sees to a temporary folder."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer)
        sync_file(writer)


def sync_file(file: IO[Any]) -> None:
    """Make durable what was written into an open file."""
    file.flush()
    os.fsync(file.fileno())


def temporary_of(path: Path, attempt: str = "") -> Path:
    """The file or folder beside `path` that is filled before it gets that name; `attempt` tells writers apart."""
    return path.with_name(f".{path.name}.{attempt}.tmp" if attempt else f".{path.name}.tmp")


@contextmanager
def write_folder_safely(path: Path, attempt: str = "") -> Iterator[Path]:
    """Fill `temporary_of(path)`; when the block ends well it becomes `path`, replacing what stood there.

    The files inside must be synced by who writes them. When the block fails, the temporary folder is removed and `path`
    is as it was.

    Raises:
        OSError: as the system reports it.
    """
    path = Path(path)
    temporary, old = temporary_of(path, attempt), path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        with _place_named(path):
            yield temporary
        sync_folder(temporary)
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, as fsync does for a file's content."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: Path, error: type[MindModelError], max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        error: if it is longer than `max_bytes`; it is not read then.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise error(f"{path}: has {size:,} bytes, more than the {max_bytes:,} that such a file may have.")
    return path.read_bytes()


def read_json(path: Path, error: type[MindModelError], max_bytes: int = JSON_MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        error: what to raise, since a damaged file is another matter in each room.
        max_bytes: a longer file is refused unread.

    Raises:
        error: if the file is missing, too long, no JSON, or not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise error(f"{path}: there is no such file.")
    try:
        content = json.loads(read_bytes(path, error, max_bytes).decode("utf-8"))
    except (ValueError, RecursionError) as fault:
        raise error(f"{path}: not JSON ({fault}). The file is damaged; write or fetch it again.") from fault
    if not isinstance(content, dict):
        raise error(f"{path}: a JSON object was expected, this is a {type(content).__name__}.")
    return content


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex; reads it in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def stays_inside(name: object) -> bool:
    """Whether a name read from a file is a relative path that cannot leave its folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and bool(path.parts) and ".." not in path.parts


def file_inside(folder: Path, name: object, error: type[MindModelError]) -> Path:
    """The existing file of that name, which was itself read from a file, in the folder.

    Links that the folder holds are followed: Hugging Face's cache is made of them.

    Raises:
        error: if the name leaves the folder, or there is no such file.
    """
    if not stays_inside(name):
        raise error(f"{folder}: the file name {name!r} leads out of the folder. Names in an index must stay inside it.")
    path = Path(folder) / str(name)
    if not path.is_file():
        raise error(f"{folder}: '{name}' is missing. The folder is not complete; copy or write it again.")
    return path
