"""The C++ kernels against plain references in double precision: driver.cc, run with and without sanitizers."""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mindmodel.machine import cpp_compiler

DRIVER = Path(__file__).parent / "driver.cc"
KERNELS = Path(__file__).parents[3] / "mindmodel" / "layers" / "native"
MACHINE = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
FAST = ("-Wall", "-Wextra", "-Werror", "-O3", MACHINE, "-fno-math-errno", "-fno-trapping-math")
SANITIZED = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def succeed(*command: str) -> str:
    """What a command prints; it must succeed. Threads beyond the cores must not spin; sanitizers must come first."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "LD_PRELOAD": ""}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # clang's OpenMP library has some
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def compile_all(folder: Path, sources: list[Path], *flags: str) -> list[str]:
    """Object files, two compiled at a time."""
    compiler = cpp_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: neither $CXX nor g++ nor clang++ is there")
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    command = [compiler, "-std=c++17", "-fopenmp", *flags]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: succeed(*command, "-c", str(pair[0]), "-o", pair[1]), zip(sources, objects)))
    return objects


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> list[str]:
    """The driver without the kernels; a sanitizer guards its arrays through malloc all the same."""
    return compile_all(tmp_path_factory.mktemp("driver"), [DRIVER], "-O1")


def run_driver(driver: list[str], folder: Path, *flags: str) -> str:
    """What the driver prints when linked with kernels that are compiled with these flags."""
    objects = compile_all(folder, sorted(KERNELS.glob("*.cc")), *flags)
    succeed(cpp_compiler() or "", "-fopenmp", *flags, *driver, *objects, "-o", str(folder / "driver"))
    return succeed(str(folder / "driver"))


def test_every_kernel_equals_its_reference(driver, tmp_path):
    assert " 0 failures" in run_driver(driver, tmp_path, *FAST)


def test_no_kernel_leaves_its_arrays_or_does_what_is_undefined(driver, tmp_path):
    empty = tmp_path / "empty.cc"
    empty.write_text("int main() {}")
    if subprocess.run([cpp_compiler() or "", *SANITIZED, str(empty), "-o", str(tmp_path / "empty")]).returncode:
        pytest.skip("the compiler comes without its sanitizers' libraries")
    assert " 0 failures" in run_driver(driver, tmp_path, *SANITIZED)
