"""The kernels' shared library: built at first use into the user's cache, verified, loaded into this process.

Imports no mindspore.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Callable, ContextManager, Iterator, Optional

from mindmodel.errors import MindModelError
from mindmodel.files import read_json, sha256_of, write_folder_safely
from mindmodel.machine import cache_folder, cpp_compiler, cpu_features, usable_cores

SOURCES = Path(__file__).parent
LIBRARY, MANIFEST = "libmindmodel.so", "manifest.json"
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
BUILD_LIMIT_S = 300

_in_use: Optional[Path] = None


class BuildError(MindModelError):
    """The library cannot be built or loaded on this machine."""


def in_use() -> Optional[Path]:
    """The library whose kernels new layers take; None: they take the graph's formulas."""
    return _in_use


def use(path: Optional[Path], threads: int = 1) -> None:
    """Let layers that are made from now on take their kernels from this library, or from none."""
    global _in_use
    if path is not None:
        try:
            ctypes.CDLL(str(path)).mindmodel_set_threads(threads)
        except (OSError, AttributeError) as error:
            raise BuildError(f"{path}: cannot be loaded: {error}") from error
    _in_use = path


def onednn() -> Optional[Path]:
    """MindSpore's own oneDNN, where its matrix product is the faster one: by a twentieth with AVX2."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or not spec.submodule_search_locations or "avx2" not in cpu_features():
        return None
    path = Path(spec.submodule_search_locations[0]) / "lib" / "libdnnl.so.3"
    return path if path.is_file() else None


def _command(compiler: str) -> list[str]:
    """Compiler and flags, the sources and the output left out."""
    machine = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    return [compiler, *FLAGS, machine]


def _linked() -> list[str]:
    """Definitions and libraries of oneDNN."""
    path = onednn()
    if path is None:
        return []
    return ["-DMINDMODEL_ONEDNN", f"-L{path.parent}", f"-l:{path.name}", f"-Wl,-rpath,{path.parent}"]


def _run(command: list[str]) -> str:
    """Standard output of the compiler."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else done.returncode}")
    return done.stdout


def _key(compiler: str) -> str:
    """What the library depends on: sources, compiler, flags, instruction sets, oneDNN's place."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.cc")) + sorted(SOURCES.glob("*.h")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    described = [_run([compiler, "--version"]), *_command(compiler), *_linked(), *sorted(cpu_features())]
    digest.update("\n".join(described).encode())
    return digest.hexdigest()[:16]


def find_or_build(working: Callable[[str], ContextManager] = nullcontext) -> Path:
    """The library for this machine, verified; built in a few seconds where the cache has none.

    Args:
        working: entered with a text while it is built.

    Raises:
        BuildError: without a C++ compiler, or when it fails.
    """
    compiler = cpp_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler (g++, clang++ or $CXX)")
    key = _key(compiler)
    try:
        folder = cache_folder().absolute() / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(folder, 0o700)
        with _locked(folder):
            return _verified(folder / key) or _build(compiler, folder / key, working)
    except (OSError, RuntimeError):  # a home that is read-only, full, or that nobody knows
        private = Path(tempfile.mkdtemp(prefix="mindmodel-kernels-"))
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        return _build(compiler, private / key, working)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process builds; the others wait for it."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _verified(folder: Path) -> Optional[Path]:
    """The library in a folder of the cache, if it is the one that was written."""
    path = folder / LIBRARY
    try:
        known = read_json(folder / MANIFEST, BuildError)
    except BuildError:
        return None
    return path if path.is_file() and known.get(LIBRARY) == sha256_of(path) else None


def _build(compiler: str, folder: Path, working: Callable[[str], ContextManager]) -> Path:
    """Compile every source, several at once, and link them."""
    with working("building the CPU kernels, once"), write_folder_safely(folder) as new:
        objects = [new / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.cc"))]
        commands = [
            [*_command(compiler), *_linked()[:1], "-c", str(SOURCES / f"{path.stem}.cc"), "-o", str(path)]
            for path in objects
        ]
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(_run, commands))
        library = new / LIBRARY
        _run([*_command(compiler), "-shared", *map(str, objects), *_linked()[1:], "-o", str(library)])
        for path in objects:
            path.unlink()
        (new / MANIFEST).write_text(json.dumps({LIBRARY: sha256_of(library)}))
    return folder / LIBRARY
