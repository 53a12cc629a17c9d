"""What a node can say of itself before a job is launched on it: versions, files, memory, devices. Pure Python."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Iterable, Iterator, Sequence

import mindmodel
from mindmodel import machine
from mindmodel.build_cache import source_digest
from mindmodel.cann import cann_version, fault_of, real_cann
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.data.sources import files_of_entry
from mindmodel.errors import MindModelError
from mindmodel.preflight.report import Fact
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.recipe.estimate import estimate, known_vocab_size
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import data_size

DIGEST_SIZE = 12
PROCESS_BYTES = 1 << 30
"""Main memory that a process with MindSpore takes before it has a model."""
MIN_DISK_BYTES = 1 << 30

NPU_SMI = "npu-smi"
NPU_SMI_LIMIT_S = 20.0
HEALTH_LINE = re.compile(r"^\s*Health(?: Status)?\s*:\s*(\S+)\s*$", re.MULTILINE)
HEALTH_STATES = ("OK", "Warning", "Alarm", "Critical", "UNKNOWN")
"""Best first.

Source: `npu-smi info -t health -i ID` in the command reference of Huawei's Ascend documentation.
"""


def gather(recipe: Recipe, device_ids: Sequence[int]) -> dict[str, Fact]:
    """What holds on this node for a recipe whose degrees are all numbers.

    Args:
        device_ids: of the devices, or processes on CPU, that the job uses here.
    """
    device = device_of(recipe)
    return {
        "mindmodel": Fact(text=mindmodel.__version__),
        "code": code(),
        "recipe": Fact(text=digest([recipe_to_yaml(recipe)])),
        "python": Fact(text=platform.python_version()),
        "mindspore": package("mindspore"),
        "numpy": package("numpy"),
        "device": Fact(text=device),
        "CANN": toolkit(device),
        "kernels": kernels(recipe, device),
        "data": data(recipe),
        "init_from": weights(recipe),
        "free disk": disk(recipe),
        "free memory": memory(len(device_ids)),
        "devices": devices(device, device_ids),
        "chips": chips(device, device_ids),
    }


def device_of(recipe: Recipe) -> str:
    """What the recipe's processes would run on here: Ascend or CPU."""
    return "Ascend" if machine.runs_on_ascend(recipe.runtime.device) else "CPU"


def digest(lines: Iterable[str]) -> str:
    """A short text that is equal where all lines are."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_SIZE]


def code() -> Fact:
    """Of this package's own sources, which may have been changed since it was installed."""
    return Fact(text=source_digest()[:DIGEST_SIZE])


def package(name: str) -> Fact:
    """Version of an installed package, which is not imported."""
    try:
        return Fact(text=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Fact(text="absent", fault=f"{name} is not installed. `mindmodel doctor` says which version to install.")


def toolkit(device: str) -> Fact:
    """The CANN toolkit, which only a job on Ascend needs."""
    real = real_cann()
    text = "none" if real is None else cann_version(real) or "unknown"
    if device == "CPU":
        return Fact(text=text)
    if real is None:
        return Fact(text=text, fault="there is no CANN. `mindmodel doctor` says which version to install.")
    return Fact(text=text, fault=fault_of(real))


def kernels(recipe: Recipe, device: str) -> Fact:
    """Which kernels the layers would take."""
    asked = recipe.runtime.cpu_kernels
    if device == "Ascend":
        return Fact(text="Ascend")
    if asked != "graph" and machine.cpp_compiler() is not None:
        return Fact(text="native")
    fault = "runtime.cpu_kernels is native, and there is no C++ compiler. Use apt-get install g++, or auto."
    return Fact(text="graph", fault=fault if asked == "native" else "")


def data(recipe: Recipe) -> Fact:
    """Names and sizes of the files that the job would read: the run's own corpus once it is made, else its source."""
    try:
        lines = list(_data_files(recipe))
    except (MindModelError, OSError) as error:
        return Fact(text="not visible", fault=str(error))
    return Fact(text=digest(lines))


def _data_files(recipe: Recipe) -> Iterator[str]:
    section, made = recipe.data, RunFolder(Path(recipe.output)).data
    if section.path is None and made.is_dir():
        yield from _listing(made)
        return
    if section.path is not None:
        yield from _listing(Path(section.path))
    for entry in section.source or ():
        yield from [entry] if entry == "stdlib" else _sizes(files_of_entry(entry))
    if section.tokenizer != "train":
        yield from _listing(Path(section.tokenizer))


def _listing(path: Path) -> list[str]:
    """A file, or the files of a folder and those one level below."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder. Mount or copy it.")
    if path.is_file():
        return _sizes([path])
    return _sizes(sorted(file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file()))


def _sizes(files: Iterable[Path]) -> list[str]:
    return [f"{file.as_posix()} {file.stat().st_size}" for file in files]


def weights(recipe: Recipe) -> Fact:
    """Names and sizes of the files that a new run would begin with."""
    start = recipe.train.init_from
    if start is None:
        return Fact(text="not set")
    try:
        return Fact(text=digest(_listing(Path(start))))
    except OSError as error:
        return Fact(text="not visible", fault=str(error))


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def disk(recipe: Recipe) -> Fact:
    """Free space where the run folder is or will be, against the checkpoints that are still to come."""
    run, needed = RunFolder(Path(recipe.output)), MIN_DISK_BYTES
    free = shutil.disk_usage(nearest_folder(run.path)).free
    vocab_size = known_vocab_size(recipe)
    if vocab_size is not None:
        need = estimate(recipe, vocab_size)
        there = sum(file.stat().st_size for file in run.checkpoints.rglob("*") if file.is_file())
        needed = max(needed, need.checkpoint_bytes, need.disk_bytes - there)
    text = data_size(free)
    fault = f"{text}, and checkpoints need {data_size(needed)}. Make room, or choose another runtime.output."
    return Fact(text=text, fault=fault if free < needed else "", amount=free)


def memory(num_processes: int) -> Fact:
    """Free main memory against what the processes take at the least."""
    found, needed = machine.memory(), num_processes * PROCESS_BYTES
    if found is None:
        return Fact(text="unknown")
    text = data_size(found.free_bytes)
    fault = f"{text}, and {num_processes} processes need {data_size(needed)} at the least. Close other programs."
    return Fact(text=text, fault=fault if found.free_bytes < needed else "", amount=found.free_bytes)


def devices(device: str, device_ids: Sequence[int]) -> Fact:
    """Whether the devices that the job wants are there."""
    if device == "CPU":
        return Fact(text=f"{len(device_ids)} on {machine.usable_cores()} cores")
    visible = machine.ascend_devices()
    missing = [str(number) for number in device_ids if number >= visible]
    text = f"{len(device_ids) - len(missing)} of {len(device_ids)}"
    fault = f"{visible} Ascend devices are visible (/dev/davinci*), not {', '.join(missing)}. Use other --device-ids."
    return Fact(text=text, fault=fault if missing else "")


def chips(device: str, device_ids: Sequence[int]) -> Fact:
    """Health of the chips as Huawei's tool tells it, where there is one; on boards with one chip for each NPU ID."""
    if device == "CPU":
        return Fact(text="not used")
    if shutil.which(NPU_SMI) is None:
        return Fact(text=f"no {NPU_SMI}")
    with ThreadPoolExecutor(max_workers=8) as pool:
        states = dict(zip(device_ids, pool.map(health, device_ids)))
    bad = [f"{number} {state}" for number, state in states.items() if state != "OK"]
    fault = f"not known to be healthy: {', '.join(bad)}. See npu-smi info, and leave chips out with --device-ids."
    return Fact(text=f"{len(states) - len(bad)} of {len(states)} OK", fault=fault if bad else "")


def health(device_id: int) -> str:
    """The worst of a device's states; `unknown` where the tool fails, hangs or prints what is not understood."""
    command = [NPU_SMI, "info", "-t", "health", "-i", str(device_id)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=NPU_SMI_LIMIT_S,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    states = HEALTH_LINE.findall(done.stdout)
    if done.returncode or not states or not set(states) <= set(HEALTH_STATES):
        return "unknown"
    return max(states, key=HEALTH_STATES.index)
