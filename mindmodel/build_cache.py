"""What is built on the user's machine: made once, kept in a private folder of the cache, verified before it is used.

A folder of the cache is named by the key of all that it was made from, and holds a manifest of checksums. Where the
cache cannot be written, a temporary folder takes its place and goes with the process.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import mindmodel
from mindmodel.errors import MindModelError
from mindmodel.files import file_inside, read_json, sha256_of, write_text_safely
from mindmodel.machine import cache_folder

MANIFEST, LOCK = "manifest.json", ".lock"
SOURCE_SUFFIXES = (".py", ".cc", ".h")
BUILD_LIMIT_S = 300


class BuildError(MindModelError):
    """What must be built or loaded on this machine cannot be."""


def source_digest() -> str:
    """SHA-256 of all of this package's sources, Python and C++, and their places in it."""
    package = Path(mindmodel.__file__).parent
    sources = sorted(path for path in package.rglob("*") if path.suffix in SOURCE_SUFFIXES)
    text = "".join(f"{path.relative_to(package)} {sha256_of(path)}\n" for path in sources)
    return hashlib.sha256(text.encode()).hexdigest()


def find_or_make(room: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder `<cache>/<room>/<key>`, verified; made where there is none, or one that is damaged.

    Args:
        make: makes the folder of this path, whole or not at all, with a manifest.
    """
    try:
        folder = cache_folder().absolute() / room
        with _locked(folder):
            if not is_whole(folder / key):
                make(folder / key)
        return folder / key
    except (OSError, RuntimeError):  # a home that is read-only, full, or that nobody knows
        folder = temporary_folder(room) / key
        make(folder)
        return folder


def temporary_folder(room: str) -> Path:
    """A folder in a room's place that goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix=f"mindmodel-{room}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process makes; the others wait for it."""
    descriptor = open_lock(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_lock(folder: Path) -> int:
    """Make a folder that is the user's alone, and open the file whose lock is the right to change it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def checksums(folder: Path) -> dict[str, str]:
    """By name, of every file below a folder but its manifest and lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MANIFEST, LOCK))
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def write_manifest(folder: Path) -> None:
    """Note the checksum of every file that a folder holds now."""
    write_text_safely(folder / MANIFEST, json.dumps(checksums(folder)))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds every file of its manifest as it was written."""
    try:
        known = read_json(folder / MANIFEST, BuildError)
        return bool(known) and all(sha256_of(file_inside(folder, name, BuildError)) == known[name] for name in known)
    except BuildError:
        return False


def run_tool(command: list[str]) -> str:
    """Standard output of a compiler.

    Raises:
        BuildError: if it does not start, fails or hangs.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else done.returncode}")
    return done.stdout
