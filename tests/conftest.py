"""Shared by all tests: a cache of their own, and MindSpore set up as the commands set it up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindmodel.parallel.environment import prepare_environment
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.schema import RuntimeSection

prepare_environment(RuntimeSection(cpu_kernels="graph"))  # before any test imports mindspore
sys.path.append(os.path.dirname(__file__))  # for graph.py and command.py


RECIPE = {
    "name": "tests",
    "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "ffn_size": 8, "vocab_size": 300},
    "data": {"source": "stdlib", "seq_len": 8, "tokenizer_vocab_size": 300},
    "train": {"steps": 1, "tokens_per_step": 8},
    "runtime": {"device": "cpu", "cpu_kernels": "graph"},
}


ROOMS = ("tests/cli/", "tests/dryrun/")
"""Their tests share what is trained or compiled once for all of them."""
FIRST = "tests/tools/test_launch_soak.py"
"""Waits for minutes and computes little: at the end it would be alone."""


def pytest_collection_modifyitems(items):
    """Workers take tests in the order of the folders, but for this one."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker takes a file after the other, and a whole room where it is one of ROOMS."""
    from xdist.scheduler import LoadFileScheduling

    class FilesAndRooms(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((room for room in ROOMS if nodeid.startswith(room)), super()._split_scope(nodeid))

    return FilesAndRooms(config, log)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Compiled graphs go into a folder of this session, for this process and those it starts."""
    os.environ["MINDMODEL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_recipe():
    """A recipe whose graph takes no time; on CPU, with the graph's formulas."""
    return recipe_from_dict(RECIPE, "tests")


@pytest.fixture(scope="session")
def runtime(cache_of_the_tests, small_recipe):
    """MindSpore in graph mode on CPU."""
    from mindmodel.parallel.runtime import start_runtime

    return start_runtime(small_recipe, "tests")


@pytest.fixture(scope="session")
def native_library(cache_of_the_tests):
    """The C++ kernels, built for this session."""
    from mindmodel.layers.native import library
    from mindmodel.machine import cpp_compiler

    if cpp_compiler() is None:
        pytest.skip("native kernels need a C++ compiler: apt-get install g++")
    path = library.find_or_build()
    library.use(path, 2)
    library.use(None)
    return path


@pytest.fixture(scope="session")
def standin(cache_of_the_tests):
    """Folder of the stand-in for CANN, built for this session."""
    from mindmodel.dryrun.standin import find_or_build
    from mindmodel.machine import cpp_compiler

    if cpp_compiler() is None:
        pytest.skip("the stand-in for CANN needs a compiler: apt-get install g++")
    return find_or_build()


@pytest.fixture
def compiling(runtime):
    """A block in which graphs may be compiled: what the compiler prints and writes stays out of the way."""
    return runtime.cache.compiling


@pytest.fixture
def kernels_of(runtime, request, monkeypatch):
    """Function: Cells made from now on in this test take these kernels, on any machine: CPU, Native or Ascend."""
    from mindmodel.layers import kernels
    from mindmodel.layers.native import library

    def choose(name: str) -> kernels.Kernels:
        device = "Ascend" if name == "Ascend" else "CPU"
        monkeypatch.setattr(kernels, "ms", SimpleNamespace(get_context={"device_target": device}.__getitem__))
        path = request.getfixturevalue("native_library") if name == "Native" else None
        monkeypatch.setattr(library, "_in_use", path)
        return kernels.device_kernels()

    return choose


@pytest.fixture
def without_fusion(runtime):
    """Operators run one by one: fused on CPU they have no bfloat16, and their exponentials are off by up to 3e-4."""
    import mindspore as ms

    ms.set_context(enable_graph_kernel=False)
    yield
    ms.set_context(enable_graph_kernel=runtime.graph_kernels)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many KiB; gives its folder."""
    mounted = []

    def mount(size_kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a tmpfs cannot be mounted here: {error}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)
