"""The kernels' shared library: built at first use into the user's cache, verified, loaded into this process.

Imports no mindspore.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Callable, ContextManager, Optional

from mindmodel.build_cache import BuildError, find_or_make, run_tool, write_manifest
from mindmodel.files import sha256_of, write_folder_safely
from mindmodel.machine import cpp_compiler, cpu_features, package_folder, usable_cores

SOURCES = Path(__file__).parent
LIBRARY = "libmindmodel.so"
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")

_in_use: Optional[Path] = None


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


def _onednn() -> Optional[Path]:
    """MindSpore's own oneDNN, where its matrix product is the faster one: by a twentieth with AVX2."""
    folder = package_folder("mindspore")
    if folder is None or "avx2" not in cpu_features():
        return None
    path = folder / "lib" / "libdnnl.so.3"
    return path if path.is_file() else None


def _command(compiler: str) -> list[str]:
    """Compiler and flags, the sources and the output left out."""
    machine = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    return [compiler, *FLAGS, machine, *(["-DMINDMODEL_ONEDNN"] if _onednn() else [])]


def _linked() -> list[str]:
    """What the linker is told of oneDNN."""
    path = _onednn()
    return [f"-L{path.parent}", f"-l:{path.name}", f"-Wl,-rpath,{path.parent}"] if path else []


def _key(compiler: str) -> str:
    """What the library depends on: sources, compiler, flags, instruction sets, oneDNN's place."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.cc")) + sorted(SOURCES.glob("*.h")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    described = [run_tool([compiler, "--version"]), *_command(compiler), *_linked(), *sorted(cpu_features())]
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
    return find_or_make("kernels", _key(compiler), lambda folder: _build(compiler, folder, working)) / LIBRARY


def _build(compiler: str, folder: Path, working: Callable[[str], ContextManager]) -> None:
    """Compile every source, several at once, and link them."""
    with working("building the CPU kernels, once"), write_folder_safely(folder) as new:
        objects = [new / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.cc"))]
        commands = [
            [*_command(compiler), "-c", str(SOURCES / f"{path.stem}.cc"), "-o", str(path)] for path in objects
        ]
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(run_tool, commands))
        run_tool([*_command(compiler), "-shared", *map(str, objects), *_linked(), "-o", str(new / LIBRARY)])
        for path in objects:
            path.unlink()
        write_manifest(new)
