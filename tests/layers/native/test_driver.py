"""The C++ kernels against plain references in double precision: driver.cc, built and run with and without sanitizers."""

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
FAST = ("-O3", MACHINE, "-fno-math-errno", "-fno-trapping-math")
SANITIZED = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def succeed(*command: str) -> str:
    """What a command prints; it must succeed. More threads than cores must not spin; sanitizers must be loaded first."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "LD_PRELOAD": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build(folder: Path, *flags: str) -> str:
    """Compile the driver and the kernels, two files at a time."""
    compiler = cpp_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: neither $CXX nor g++ nor clang++ is there")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fopenmp", *flags]
    sources = [DRIVER, *sorted(KERNELS.glob("*.cc"))]
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: succeed(*command, "-c", str(pair[0]), "-o", pair[1]), zip(sources, objects)))
    succeed(*command, *objects, "-o", str(folder / "driver"))
    return str(folder / "driver")


def test_every_kernel_equals_its_reference(tmp_path):
    assert " 0 failures" in succeed(build(tmp_path, *FAST))


def test_no_kernel_leaves_its_arrays_or_does_what_is_undefined(tmp_path):
    assert " 0 failures" in succeed(build(tmp_path, *SANITIZED))
