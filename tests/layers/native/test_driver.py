"""The C++ kernels against plain references in double precision: the driver here, run with and without sanitizers."""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mindmodel.layers.native import library
from mindmodel.machine import cpp_compiler

DRIVER = sorted(Path(__file__).parent.glob("*.cc"))
KERNELS = library.SOURCES
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
    return compile_all(tmp_path_factory.mktemp("driver"), DRIVER, "-O1")


@pytest.fixture(scope="module")
def fast_kernels(tmp_path_factory) -> list[str]:
    return compile_all(tmp_path_factory.mktemp("kernels"), sorted(KERNELS.glob("*.cc")), *FAST)


def run_linked(objects: list[str], folder: Path, *flags: str) -> str:
    """What the driver prints."""
    succeed(cpp_compiler() or "", "-fopenmp", *objects, *flags, "-o", str(folder / "driver"))
    return succeed(str(folder / "driver"))


def test_every_kernel_equals_its_reference(driver, fast_kernels, tmp_path):
    assert " 0 failures" in run_linked([*driver, *fast_kernels], tmp_path)


def test_so_does_every_kernel_that_multiplies_with_mindspores_onednn(driver, fast_kernels, tmp_path):
    if not library._linked():
        pytest.skip("MindSpore's oneDNN is used with AVX2 only")
    others = [path for path in fast_kernels if Path(path).name != "onednn.o"]
    products = compile_all(tmp_path, [KERNELS / "onednn.cc"], *FAST, "-DMINDMODEL_ONEDNN")
    assert " 0 failures" in run_linked([*driver, *others, *products], tmp_path, *library._linked())


def test_no_kernel_leaves_its_arrays_or_does_what_is_undefined(driver, tmp_path):
    empty = tmp_path / "empty.cc"
    empty.write_text("int main() {}")
    if subprocess.run([cpp_compiler() or "", *SANITIZED, str(empty), "-o", str(tmp_path / "empty")]).returncode:
        pytest.skip("the compiler comes without its sanitizers' libraries")
    kernels = compile_all(tmp_path, sorted(KERNELS.glob("*.cc")), *SANITIZED)
    assert " 0 failures" in run_linked([*driver, *kernels], tmp_path, *SANITIZED)
