"""Shared by all tests: a cache of their own, and MindSpore set up as the commands set it up."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from mindmodel.parallel.environment import prepare_environment

prepare_environment()  # before any test imports mindspore
sys.path.append(os.path.dirname(__file__))  # for graph.py


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Compiled graphs go into a folder of this session, for this process and those it starts."""
    os.environ["MINDMODEL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def runtime(cache_of_the_tests):
    """MindSpore in graph mode on CPU."""
    from mindmodel.parallel.runtime import start_runtime
    from mindmodel.recipe.schema import RuntimeSection

    return start_runtime(RuntimeSection(device="cpu"))


@pytest.fixture
def compiling(runtime):
    """A block in which graphs may be compiled: what the compiler prints and writes stays out of the way."""
    return runtime.cache.compiling


@pytest.fixture
def kernels_of(runtime, monkeypatch):
    """Function: Cells made from now on in this test take the kernels of a device, `CPU` or `Ascend`, on any machine."""
    from mindmodel.layers import kernels

    def choose(device: str) -> None:
        monkeypatch.setattr(kernels, "ms", SimpleNamespace(get_context={"device_target": device}.__getitem__))

    return choose


@pytest.fixture
def without_fusion(runtime):
    """Operators run one by one: fused on CPU they have no bfloat16, and their exponentials are off by up to 3e-4."""
    import mindspore as ms

    ms.set_context(enable_graph_kernel=False)
    yield
    ms.set_context(enable_graph_kernel=runtime.graph_kernels)
