"""Where compiled graph kernels are kept between runs: a private folder, verified before MindSpore loads a file of it.

MindSpore writes the shared objects of fused kernels below MS_COMPILER_CACHE_PATH and loads what it finds there by name.
A process that is killed can leave half of one behind, and two compiling at once can overwrite each other; so the folder
has one owner at a time, and a manifest of checksums that is renewed after each compilation decides what may stay.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Iterator, Optional

from mindmodel.errors import MindModelError
from mindmodel.files import read_json, sha256_of, write_text_safely
from mindmodel.machine import cache_folder, cpu_features

MANIFEST = "manifest.json"
COMPILE_LOG = "compile.log"


def _key() -> str:
    """Kernels are built by one version of MindSpore for the machine's own instruction set."""
    return hashlib.sha256(f"{version('mindspore')} {sorted(cpu_features())}".encode()).hexdigest()[:16]


class GraphCache:
    """The folder that this process compiles in.

    It is the shared one when no other process has it, else a temporary one that goes with the process.
    """

    def __init__(self) -> None:
        self.folder = self._shared() or self._private()
        os.environ["MS_COMPILER_CACHE_PATH"] = str(self.folder)

    def _shared(self) -> Optional[Path]:
        try:
            folder = cache_folder().absolute() / "graphs" / _key()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chmod(folder, 0o700)
            lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (OSError, RuntimeError):  # a home that is read-only, or that nobody knows, is no reason to stop
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_unverified(folder)
        except OSError:  # another process has it, or its files cannot be removed
            os.close(lock)
            return None
        self._lock = lock  # held until the process ends
        return folder

    @staticmethod
    def _private() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="mindmodel-graphs-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Compile inside: MindSpore's kernel compiler writes a log into the working folder and chats on the terminal.

        The working folder is this one meanwhile, and what is printed goes into compile.log in it. To be called in the
        main thread.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        before, terminal = os.getcwd(), (os.dup(1), os.dup(2))
        with open(self.folder / COMPILE_LOG, "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)
            # MindSpore's handler would close its kernel compiler for good when the reader of our output goes away
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(terminal, 1):
                os.dup2(copy, number)
                os.close(copy)
        with suppress(OSError):  # a full disk: the next process removes what this manifest would have named
            write_text_safely(self.folder / MANIFEST, json.dumps(_checksums(self.folder)))


def _checksums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MANIFEST, ".lock"))
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def _remove_unverified(folder: Path) -> None:
    """Remove every file that the manifest does not name with the checksum it has."""
    try:
        known = read_json(folder / MANIFEST, MindModelError)
    except MindModelError:
        known = {}
    for name, checksum in _checksums(folder).items():
        if known.get(name) != checksum:
            (folder / name).unlink()
