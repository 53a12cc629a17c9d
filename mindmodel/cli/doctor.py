"""What this machine can do and what is missing: one list, nothing changed. Exit code 1 if training on CPU cannot run.

example:  mindmodel doctor
          mindmodel doctor --json
          mindmodel doctor --clear-cache
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import time
from importlib import metadata
from pathlib import Path
from typing import Iterator, NamedTuple, Optional

from mindmodel import cann, machine
from mindmodel.build_cache import LOCK, BuildError
from mindmodel.dryrun import standin
from mindmodel.terminal import data_size

OK, ABSENT, DIFFERS, BROKEN = "ok", "absent", "differs", "broken"
IMPORT_LIMIT_S = 180
MIN_MEMORY_BYTES = 1 << 30
MIN_DISK_BYTES = 1 << 30

NEEDED_BY = {
    "mindspore": "train, generate, eval",
    "numpy": "every verb",
    "pyyaml": "every verb",
    "tokenizers": "train, generate, eval",
    "safetensors": "train, convert",
    "ml_dtypes": "convert",
    "mindformers": "tests and tools/bench_graph.py",
    "decorator": "graph kernels: without it training on CPU is slower and takes more memory",
    "tensorboardx": "TensorBoard files of a run",
    "torch": "tests only",
    "transformers": "tests only",
}
TRAINING_NEEDS = ("mindspore", "numpy", "pyyaml", "tokenizers", "safetensors", "ml_dtypes")
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "i8mm", "bf16")


class Check(NamedTuple):
    """One line of the list."""

    name: str
    state: str
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the list")
    parser.add_argument(
        "--clear-cache", action="store_true", help="remove what was built or compiled; it is made again when needed"
    )


def run(args: argparse.Namespace) -> int:
    if args.clear_cache:
        return _clear_cache(machine.cache_folder())
    checks = []
    for check in _checks():
        checks.append(check)
        if not args.json:
            print(_line(check), flush=True)
    can_train = all(check.state != BROKEN for check in checks)
    if args.json:
        print(json.dumps({"can_train": can_train, "checks": [check._asdict() for check in checks]}, indent=2))
    else:
        print(f"\nTraining on CPU: {'can run' if can_train else 'cannot run; mend what is broken above'}.")
    return 0 if can_train else 1


def _clear_cache(cache: Path) -> int:
    """Remove what this package built and compiled; what a running process holds stays, and is named."""
    owned = [cache / "kernels", cache / standin.ROOM, *sorted((cache / "graphs").glob("*"))]
    code = 0
    for path in filter(Path.is_dir, owned):
        size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        if _in_use(path):
            print(f"{path}: in use by a running mindmodel, left as it is")
            code = 1
        else:
            shutil.rmtree(path)
            print(f"removed {path}, {data_size(size)}")
    if not any(map(Path.is_dir, owned)) and code == 0:
        print(f"{cache} holds nothing that was built or compiled now")
    return code


def _in_use(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with open(folder / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _line(check: Check) -> str:
    """Name, state and detail in 80 columns."""
    head = f"{check.name:<15} {check.state:<7} "
    return textwrap.fill(check.detail, 80, initial_indent=head, subsequent_indent=" " * len(head))


def _checks() -> Iterator[Check]:
    """All checks, quick ones first."""
    yield python_version(sys.version_info[:2])
    yield from packages()
    yield cores()
    yield memory()
    yield features()
    yield compiler()
    yield ascend()
    yield ascend_toolkit()
    yield from folders()
    yield import_mindspore()
    yield Check("several devices", OK, "MindSpore's msrun starts the processes: no MPI is needed")


def python_version(version: tuple[int, int]) -> Check:
    """Whether MindSpore comes for it."""
    name = ".".join(map(str, version))
    if (3, 10) <= version <= (3, 12):
        return Check("python", OK, f"{platform.python_version()} on {platform.machine()}")
    return Check("python", BROKEN, f"{name}: MindSpore 2.9.0 comes for Python 3.10, 3.11 and 3.12")


def _requirements() -> dict[str, Optional[str]]:
    """Packages that mindmodel's own metadata asks for, with the pinned version if there is one."""
    found = {}
    for text in metadata.requires("mindmodel") or []:
        match = re.match(r"([\w.-]+)\s*(?:==\s*([\w.]+))?", text)
        if match and match[1].lower() in NEEDED_BY:
            found[match[1].lower()] = match[2]
    return found


def packages() -> Iterator[Check]:
    """Installed versions against the pins, read from metadata: nothing is imported."""
    try:
        requirements = _requirements()
    except metadata.PackageNotFoundError:
        yield Check("mindmodel", BROKEN, "not installed. Use pip install -e . in its folder")
        return
    for name, pin in requirements.items():
        yield package(name, pin)


def package(name: str, pin: Optional[str]) -> Check:
    """One package against its pin."""
    wanted = f"{name}=={pin}" if pin else name
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        state = BROKEN if name in TRAINING_NEEDS else ABSENT
        return Check(name, state, f"needed by: {NEEDED_BY[name]}. Use pip install {wanted}")
    if pin and version.split("+")[0] != pin:
        return Check(name, DIFFERS, f"{version}, and only {pin} is tested. Use pip install {wanted}")
    return Check(name, OK, version)


def cores() -> Check:
    """That this process may use."""
    usable, all_cores = machine.usable_cores(), os.cpu_count() or 1
    return Check("cores", OK, f"{usable} of {all_cores} for this process")


def memory() -> Check:
    """Main memory, free and whole."""
    found = machine.memory()
    if found is None:
        return Check("memory", ABSENT, "/proc/meminfo does not tell")
    text = f"{data_size(found.free_bytes)} free of {data_size(found.total_bytes)}"
    if found.free_bytes < MIN_MEMORY_BYTES:
        return Check("memory", BROKEN, f"{text}; train needs about 1 GiB for a tiny model. Close other programs")
    return Check("memory", OK, text)


def features() -> Check:
    """Vector instruction sets that the kernels use."""
    found = machine.cpu_features()
    shown = [name for name in FEATURES if name in found]
    return Check("cpu", OK, ", ".join(shown) if shown else "no vector instruction set that matters here")


def compiler() -> Check:
    """For native kernels."""
    path = machine.cpp_compiler()
    if path is None:
        return Check("c++ compiler", ABSENT, "needed by: native CPU kernels. Use apt-get install g++")
    return Check("c++ compiler", OK, path)


def ascend() -> Check:
    """Devices and their tool."""
    devices, tool = machine.ascend_devices(), shutil.which("npu-smi")
    if devices or tool:
        return Check("ascend", OK, f"{devices} devices; npu-smi {'at ' + tool if tool else 'not in PATH'}")
    return Check("ascend", ABSENT, "no /dev/davinci* and no npu-smi; needed by: training on NPUs. CPU works without")


def ascend_toolkit() -> Check:
    """CANN, or else what stands in for it where nothing is trained."""
    name, real = "ascend toolkit", cann.real_cann()
    if real is None:
        try:
            built = standin.find()
        except BuildError as error:
            return Check(name, ABSENT, f"needed by: dryrun. No CANN, and {error}")
        return Check(name, OK, f"no CANN; what stands in for it in dry runs is {built or 'built at first use'}")
    text, fault = f"CANN {cann.cann_version(real) or 'of unknown version'} at {real}", cann.fault_of(real)
    return Check(name, DIFFERS if fault else OK, f"{text}, but {fault}" if fault else text)


def folders() -> Iterator[Check]:
    """Whether they can be written, and what is free."""
    yield folder("working folder", Path.cwd())
    yield folder("cache folder", machine.cache_folder())


def folder(name: str, path: Path) -> Check:
    """Free space of a folder, or of the nearest one above it that exists, and whether one may write there."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK | os.X_OK):
        works = "Set MINDMODEL_CACHE to another folder" if name == "cache folder" else "Work in another folder"
        return Check(name, BROKEN, f"{path} cannot be written. {works}")
    if free < MIN_DISK_BYTES:
        return Check(name, BROKEN, f"{path}: {data_size(free)} free, and a run needs about 1 GiB. Make room")
    return Check(name, OK, f"{path}, {data_size(free)} free")


def import_mindspore(limit_s: float = IMPORT_LIMIT_S) -> Check:
    """Import MindSpore in a process of its own, which a crash or a hang cannot take along."""
    began = time.monotonic()
    command = [sys.executable, "-c", "import mindspore; print('version', mindspore.__version__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Check("import", BROKEN, f"mindspore is not loaded after {limit_s:g} s. Use a less busy machine")
    found = re.search(r"^version (\S+)$", done.stdout, re.MULTILINE)
    if done.returncode == 0 and found:
        return Check("import", OK, f"mindspore {found[1]} in {time.monotonic() - began:.1f} s")
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Check("import", BROKEN, f"mindspore fails: {last}. Needed by: {NEEDED_BY['mindspore']}")
