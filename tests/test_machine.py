"""What the machine lets the process use, read from made-up /proc, /sys and /dev."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from mindmodel import machine

GIB = 1 << 30


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {12 * GIB // 1024} kB\n"}


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def test_without_control_groups_the_affinity_decides(tmp_path):
    assert machine.usable_cores(tmp_path) == 8


@pytest.mark.parametrize(
    "quota, cores", [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_a_quota_of_version_2_limits_the_cores(tmp_path, quota, cores):
    write(tmp_path, {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": quota})
    assert machine.usable_cores(tmp_path) == cores


def test_a_quota_of_a_group_above_counts_too(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000"})
    assert machine.usable_cores(tmp_path) == 3


@pytest.mark.parametrize("quota, cores", [("-1", 8), ("400000", 4)])
def test_a_quota_of_version_1_limits_the_cores(tmp_path, quota, cores):
    folder = "sys/fs/cgroup/cpu/job"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"}
    write(tmp_path, {"proc/self/cgroup": "1:cpu:/job\n0::/\n", **files})
    assert machine.usable_cores(tmp_path) == cores


def test_memory_is_what_the_kernel_says(tmp_path):
    write(tmp_path, MEMINFO)
    assert machine.memory(tmp_path) == machine.Memory(total_bytes=16 * GIB, free_bytes=12 * GIB)


@pytest.mark.parametrize(
    "group, limit, use",
    [
        ("0::/\n", "memory.max", "memory.current"),
        ("4:memory:/\n", "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_a_container_limit_of_either_version_is_respected(tmp_path, group, limit, use):
    files = {f"sys/fs/cgroup/{limit}": f"{4 * GIB}\n", f"sys/fs/cgroup/{use}": f"{GIB}\n"}
    write(tmp_path, {**MEMINFO, "proc/self/cgroup": group, **files})
    assert machine.memory(tmp_path) == machine.Memory(total_bytes=4 * GIB, free_bytes=3 * GIB)


def test_no_limit_is_no_limit(tmp_path):
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    write(tmp_path, {**MEMINFO, "proc/self/cgroup": "4:memory:/\n", **files})
    assert machine.memory(tmp_path).total_bytes == 16 * GIB


def test_memory_is_not_known_without_proc(tmp_path):
    assert machine.memory(tmp_path) is None


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx2 avx512f", "Features\t: fpu avx2 avx512f"])
def test_cpu_features_are_those_of_the_first_core(tmp_path, line):
    write(tmp_path, {"proc/cpuinfo": f"processor: 0\n{line}\nprocessor: 1\n"})
    assert machine.cpu_features(tmp_path) == {"fpu", "avx2", "avx512f"}
    assert machine.cpu_features(tmp_path / "nowhere") == frozenset()


def test_ascend_devices_are_counted_without_the_manager(tmp_path):
    write(tmp_path, {"dev/davinci0": "", "dev/davinci1": "", "dev/davinci_manager": ""})
    assert machine.ascend_devices(tmp_path) == 2


def test_a_package_is_found_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "unloadable").mkdir()
    (tmp_path / "unloadable" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "module_alone.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.package_folder("unloadable") == tmp_path / "unloadable"
    assert machine.package_folder("module_alone") is machine.package_folder("not_there_at_all") is None


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path))
    assert machine.cache_folder() == tmp_path
    monkeypatch.delenv("MINDMODEL_CACHE")
    assert machine.cache_folder().parts[-2:] == (".cache", "mindmodel")


def test_the_compiler_of_the_environment_comes_first(monkeypatch, tmp_path):
    compiler = tmp_path / "mycxx"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert machine.cpp_compiler() == str(compiler)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.cpp_compiler() is None


@pytest.mark.parametrize(
    "asked, devices, ascend",
    [("auto", 0, False), ("auto", 8, True), ("cpu", 8, False), ("ascend", 0, True), ("ascend", 8, True)],
)
def test_a_recipes_device_means_ascend_where_it_is_asked_for_or_there(monkeypatch, asked, devices, ascend):
    monkeypatch.setattr(machine, "ascend_devices", lambda: devices)
    assert machine.runs_on_ascend(asked) is ascend


def test_the_parent_of_a_process_is_known_while_it_lives():
    child = subprocess.Popen(["sleep", "60"])
    assert machine.living_parent(child.pid) == os.getpid()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is not waited for
    assert machine.living_parent(child.pid) is None
    child.wait()
    assert machine.living_parent(child.pid) is None


def test_a_process_is_stopped_from_sigstop_to_sigcont():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not machine.is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert machine.is_stopped(process.pid)
        process.kill()
    assert not machine.is_stopped(process.pid)
