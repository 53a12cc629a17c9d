"""What this machine lets the process use: cores, memory, CPU features, accelerators. Standard library only.

`root` is the folder that holds /proc, /sys and /dev.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

ROOT = Path("/")

NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 writes a number near 2**63 where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of main memory, a container's limit respected."""

    total_bytes: int
    free_bytes: int


def _read(path: Path) -> str:
    """The text of a small file of the kernel; empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _own_groups(root: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of the control groups of this process; controllers are empty for version 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        yield controllers, path


def _group_folders(root: Path, controller: str) -> list[Path]:
    """This process's folder of a controller and all folders above it, versions 1 and 2."""
    folders = []
    for controllers, path in _own_groups(root):
        if controllers == "" or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            inner = top / path.strip("/")
            folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(top))]
    return folders


def _numbers(root: Path, controller: str, name: str) -> list[tuple[Path, list[int]]]:
    """(folder, numbers) of a control file wherever it exists and sets a limit."""
    found = []
    for folder in _group_folders(root, controller):
        words = _read(folder / name).split()
        if words and all(word.lstrip("-").isdigit() for word in words):
            found.append((folder, [int(word) for word in words]))
    return found


def _core_quotas(root: Path) -> list[float]:
    """Cores that control groups allow."""
    quotas = [quota / period for _, (quota, period) in _numbers(root, "cpu", "cpu.max")]
    for folder, (quota,) in _numbers(root, "cpu", "cpu.cfs_quota_us"):
        period = _read(folder / "cpu.cfs_period_us").strip()
        if quota > 0 and period.isdigit():
            quotas.append(quota / int(period))
    return quotas


def usable_cores(root: Path = ROOT) -> int:
    """Cores this process may use: its affinity, and the quota of its control group rounded up; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _core_quotas(root))]))


def memory(root: Path = ROOT) -> Optional[Memory]:
    """Main memory, and what is free of it; None where /proc does not tell.

    A control group's use counts its file cache, which the kernel gives back, so the free figure is a lower bound.
    """
    lines = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    if "MemTotal" not in lines or "MemAvailable" not in lines:
        return None
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit_name, use_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for folder, (limit,) in _numbers(root, "memory", limit_name):
            if limit < NO_LIMIT_BYTES:
                used = _read(folder / use_name).strip()
                total = min(total, limit)
                free = min(free, limit - int(used or 0))
    return Memory(total_bytes=total, free_bytes=max(0, free))


def cpu_features(root: Path = ROOT) -> frozenset[str]:
    """Instruction sets as the kernel names them: avx2, avx512f, amx_bf16; on ARM asimd, sve, bf16."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()


def ascend_devices(root: Path = ROOT) -> int:
    """Ascend devices that the driver shows."""
    return sum(path.name[len("davinci"):].isdigit() for path in (root / "dev").glob("davinci*"))


def cpp_compiler() -> Optional[str]:
    """Path of a C++ compiler: $CXX, g++ or clang++."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def package_folder(name: str) -> Optional[Path]:
    """Where a Python package is installed, which is not imported; None where it is not."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def cache_folder() -> Path:
    """$MINDMODEL_CACHE, else ~/.cache/mindmodel. Not created."""
    return Path(os.environ.get("MINDMODEL_CACHE") or Path.home() / ".cache" / "mindmodel")


def runs_on_ascend(asked: str) -> bool:
    """Whether a recipe's runtime.device means Ascend on this machine."""
    return asked == "ascend" or asked == "auto" and ascend_devices() > 0


def living_parent(pid: int) -> Optional[int]:
    """The parent of a process, from /proc; None for one that has ended."""
    state, parent = _state_and_parent(pid)
    return None if state in "ZX" else parent


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal or a debugger; from /proc."""
    return _state_and_parent(pid)[0] in "Tt"


def _state_and_parent(pid: int) -> tuple[str, int]:
    """The one-letter state of a process, X when there is none of this id."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)
