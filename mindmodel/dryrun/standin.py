"""A stand-in for CANN, with which MindSpore compiles and simulates for Ascend on a machine that has neither.

It is made from the installed MindSpore at first use and is nothing but names: what it computes means nothing.
On aarch64 it is the same C code, and never ran. Imports no mindspore.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Optional

from mindmodel.build_cache import BuildError, find_or_make, is_whole, run_tool, write_manifest
from mindmodel.cann import ACL, MINDSPORE, STANDIN, is_entered, real_cann, set_env
from mindmodel.dryrun.stubs import PLUGIN, libraries_of, source, wanted
from mindmodel.files import sha256_of, write_folder_safely
from mindmodel.machine import cache_folder, cpp_compiler, package_folder

ROOM = "cann"
HOME = "cann"
"""MindSpore takes what ends in this word, in the path of a function of CANN, to be the toolkit's folder."""
MACHINES = ("x86_64", "aarch64")
CANN_VERSION = "8.5.0"
"""What it says it is: the first two numbers are among those that MindSpore 2.9.0 accepts."""
OPERATORS = Path("opp", "built-in", "op_impl", "ai_core", "tbe")
"""Where MindSpore expects CANN's Python packages."""
TEXTS = {
    Path("compiler", "version.info"): f"Version={CANN_VERSION}\n",
    OPERATORS / "hccl" / "__init__.py": "",
    OPERATORS / "hccl" / "sys_version.py": f'__sys_version__ = "{CANN_VERSION}"\n',
}
"""Files of CANN that MindSpore reads its version from."""
SOURCES = ("elf.py", "stubs.py", "standin.py")


def toolkit() -> dict[str, str]:
    """Variables for the environment of a process that compiles for Ascend: none where CANN is, else the stand-in's.

    Raises:
        BuildError: if CANN is installed and this environment does not know it, or the stand-in cannot be built.
    """
    real = real_cann()
    if real is None:
        return environment(find_or_build())
    if not is_entered(real):
        raise BuildError(f"{real}: CANN is installed here, but not in this environment. Use source {set_env(real)}")
    return {}


def environment(folder: Path) -> dict[str, str]:
    """Variables with which a process finds the stand-in in a folder; search paths go on with the user's own."""
    home = folder / HOME
    return {
        "LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", home / ACL.parent),
        "LD_PRELOAD": _before("LD_PRELOAD", home / ACL.parent / STANDIN),
        "PYTHONPATH": _before("PYTHONPATH", home / OPERATORS),
        "ASCEND_HOME_PATH": str(home),
        "ASCEND_OPP_PATH": str(home / "opp"),
    }


def _before(name: str, path: Path) -> str:
    """A list of paths that begins with this one."""
    return os.pathsep.join(filter(None, (str(path), os.environ.get(name))))


def find() -> Optional[Path]:
    """The folder of the stand-in, verified, if it is built already; None if it can be built.

    Raises:
        BuildError: if it is not and cannot be.
    """
    folder = cache_folder().absolute() / ROOM / _key(_mindspore())
    if is_whole(folder):
        return folder
    _compiler()
    return None


def find_or_build() -> Path:
    """The folder of the stand-in, verified; built in two seconds where the cache has none.

    Raises:
        BuildError: without MindSpore, for a version or machine it is not made for, or without a compiler.
    """
    mindspore = _mindspore()
    return find_or_make(ROOM, _key(mindspore), lambda folder: _build(mindspore, folder))


def _mindspore() -> Path:
    """Folder of the installed MindSpore, if the stand-in is made for it."""
    machine, folder = platform.machine(), package_folder("mindspore")
    if machine not in MACHINES:
        raise BuildError(f"the stand-in for CANN is made for {' and '.join(MACHINES)}, not for {machine}.")
    works = f"Use pip install mindspore=={MINDSPORE}"
    if folder is None:
        raise BuildError(f"MindSpore is not installed. {works}")
    version = _version(folder)
    if version != MINDSPORE:
        raise BuildError(f"{folder}: the stand-in for CANN is not made for MindSpore {version}. {works}")
    missing = sorted(set(PLUGIN) - libraries_of(folder).keys())
    if missing:
        raise BuildError(f"{folder}: {', '.join(missing)} missing: no MindSpore with Ascend's plugin. {works}")
    return folder


def _version(mindspore: Path) -> str:
    """Version of a MindSpore package that is not imported."""
    found = re.search(r"__version__ = '(.+)'", (mindspore / "version.py").read_text())
    return found[1] if found else "of unknown version"


def _key(mindspore: Path) -> str:
    """What the stand-in depends on: MindSpore's plugin and our sources."""
    files = libraries_of(mindspore)
    described = [_version(mindspore), STANDIN, str(ACL), *(f"{name} {files[name].stat().st_size}" for name in PLUGIN)]
    described += [sha256_of(Path(__file__).with_name(name)) for name in SOURCES]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def _compiler() -> str:
    path = cpp_compiler()
    if path is None:
        raise BuildError("the stand-in for CANN needs a compiler (g++, clang++ or $CXX). Use apt-get install g++")
    return path


def _build(mindspore: Path, folder: Path) -> None:
    """One library with all functions, under every name that CANN's libraries have, and the files that are read."""
    compiler = _compiler()
    with write_folder_safely(folder) as new:
        found = wanted(mindspore)
        code, library = new / "standin.c", new / HOME / ACL.parent / STANDIN
        code.write_text(source(found.functions))
        library.parent.mkdir(parents=True)
        run_tool([compiler, "-x", "c", "-O1", "-fPIC", "-shared", "-nostdlib", str(code), "-o", str(library)])
        for name in found.libraries:
            library.with_name(name).symlink_to(STANDIN)
        for path, text in TEXTS.items():
            (new / HOME / path).parent.mkdir(parents=True, exist_ok=True)
            (new / HOME / path).write_text(text)
        code.unlink()
        write_manifest(new)
