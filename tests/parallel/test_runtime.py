"""The device, and what stands in the environment before MindSpore is loaded."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mindmodel.errors import LaunchError, LayoutError, TrainingError
from mindmodel.parallel import environment
from mindmodel.parallel.environment import num_threads, prepare_environment
from mindmodel.recipe.schema import RuntimeSection
from mindmodel.terminal import Terminal


def with_runtime(recipe, **keys):
    return dataclasses.replace(recipe, runtime=dataclasses.replace(recipe.runtime, **keys))


def test_ascend_without_a_device_is_refused(runtime, small_recipe, monkeypatch):
    from mindmodel.parallel import runtime as module

    monkeypatch.setattr(module, "ascend_devices", lambda: 0)
    monkeypatch.setattr(module, "GraphCache", lambda: None)
    with pytest.raises(LayoutError, match="runtime.device: 'ascend' is asked for .* Use cpu or auto."):
        module.start_runtime(with_runtime(small_recipe, device="ascend"), "tests")


@pytest.mark.parametrize("purpose", ["eval", "generate"])
def test_a_run_of_ascend_is_used_on_cpu_where_there_is_no_device(runtime, small_recipe, monkeypatch, purpose):
    from mindmodel.parallel import runtime as module

    monkeypatch.setattr(module, "GraphCache", lambda: runtime.cache)
    recipe = with_runtime(small_recipe, device="ascend", compile_cache=False)
    assert module.start_runtime(recipe, purpose).device == "CPU"


def test_the_peak_is_measured_and_named(runtime):
    from mindmodel.parallel.runtime import peak_flops

    peak, name = peak_flops(runtime)
    assert peak > 1e9 and f"1024x1024x1024 on {runtime.threads} CPU threads" in name


def test_what_the_user_has_set_stays_except_the_threads_of_the_recipe(monkeypatch):
    monkeypatch.setattr(os, "environ", {"GLOG_v": "1", "OMP_NUM_THREADS": "7,2"})
    prepare_environment()
    assert os.environ["GLOG_v"] == "1" and num_threads() == 7
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    prepare_environment(RuntimeSection(threads=3))
    assert os.environ["OMP_NUM_THREADS"] == "3" and num_threads() == 3


@pytest.mark.parametrize("given", ["abc", "0", "", "-2", "4,x"])
def test_a_thread_count_of_the_environment_that_is_none_is_named(given, monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": given})
    with pytest.raises(LaunchError, match=f"OMP_NUM_THREADS .*: '{given}' is no number of threads. Unset it, or set"):
        prepare_environment()


@pytest.mark.parametrize("workers, threads", [("1", 12), ("5", 2), ("16", 1)])
def test_the_cores_that_may_be_used_are_shared_out_among_the_workers_of_msrun(workers, threads, monkeypatch):
    monkeypatch.setattr(environment, "usable_cores", lambda: 12)
    monkeypatch.setattr(os, "environ", {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": workers})
    prepare_environment()
    assert num_threads() == threads


def test_alone_all_cores_that_may_be_used_are_taken(monkeypatch):
    monkeypatch.setattr(environment, "usable_cores", lambda: 12)
    monkeypatch.setattr(os, "environ", {})
    prepare_environment()
    assert num_threads() == 12


@pytest.mark.parametrize(
    "cpu_kernels, compiler, spins", [("auto", "g++", True), ("graph", "g++", False), ("auto", None, False)]
)
def test_threads_of_native_kernels_alone_wait_awake(cpu_kernels, compiler, spins, monkeypatch):
    monkeypatch.setattr(environment, "cpp_compiler", lambda: compiler)
    monkeypatch.setattr(os, "environ", {})
    prepare_environment(RuntimeSection(cpu_kernels=cpu_kernels))
    assert ("GOMP_SPINCOUNT" in os.environ) == spins


def test_deterministic_kernels_and_sums_are_asked_for_in_the_environment_when_the_recipe_says_so(monkeypatch):
    monkeypatch.setattr(os, "environ", {"HCCL_DETERMINISTIC": "strict"})
    prepare_environment(RuntimeSection(deterministic=True))
    wanted = {"HCCL_DETERMINISTIC": "strict", "LCCL_DETERMINISTIC": "1", "TE_PARALLEL_COMPILER": "1"}
    assert wanted.items() <= os.environ.items()
    monkeypatch.setattr(os, "environ", {})
    prepare_environment()
    assert not wanted.keys() & os.environ.keys()


@pytest.fixture
def asked(monkeypatch, small_recipe):
    """Function: what start_runtime asks of MindSpore for a recipe with these runtime keys, in order; nothing is set."""
    from mindmodel.parallel import runtime as module

    calls = []
    stub = SimpleNamespace(
        GRAPH_MODE="graph", PYNATIVE_MODE="pynative",
        set_context=lambda **keys: calls.extend(keys.items()),
        set_device=lambda device: calls.append(("device", device)),
        set_deterministic=lambda on: calls.append(("deterministic", on)),
        set_recursion_limit=lambda limit: None,
        runtime=SimpleNamespace(launch_blocking=lambda: calls.append(("blocking", True))),
        communication=SimpleNamespace(init=lambda: calls.append(("meet", True))),
    )
    monkeypatch.setattr(module, "ms", stub)
    cache = SimpleNamespace(keep_graph=lambda key: calls.append(("kept", key)))
    monkeypatch.setattr(module, "GraphCache", lambda: cache)
    monkeypatch.setattr(module, "place", lambda: environment.Place(rank=0, num_ranks=2))

    def start(**keys):
        started = module.start_runtime(with_runtime(small_recipe, **keys), "tests", Terminal(io.StringIO()))
        return started, calls

    return start


def test_sums_over_ranks_are_deterministic_when_that_is_set_before_the_ranks_meet(asked):
    names = [name for name, _ in asked(deterministic=True)[1]]
    assert names.index("device") < names.index("deterministic") < names.index("meet")


def test_pynative_mode_fuses_and_keeps_nothing_and_fails_where_the_operator_was_called(asked):
    runtime, calls = asked(mode="pynative")
    assert {"mode": "pynative", "blocking": True, "enable_graph_kernel": False}.items() <= dict(calls).items()
    assert "kept" not in dict(calls) and "deterministic" not in dict(calls)
    assert runtime.kernels == "graph kernels not fused, one by one from Python"


def test_on_ascend_the_operators_are_said_to_be_its_own(runtime):
    assert dataclasses.replace(runtime, device="Ascend").kernels == "Ascend's fused operators"


def test_graph_mode_is_the_default(asked):
    runtime, calls = asked()
    assert dict(calls)["mode"] == "graph" and "kept" in dict(calls) and "blocking" not in dict(calls)


def test_where_nothing_is_compiled_the_terminal_is_left_to_the_debugger(runtime):
    terminal = Terminal(io.StringIO())
    with dataclasses.replace(runtime, mode="pynative").compiling("the training graph", terminal):
        assert terminal.stream.getvalue() == ""
        folder = os.getcwd()
    with runtime.compiling("the training graph", terminal):
        assert os.getcwd() != folder and "compiling the training graph" in terminal.stream.getvalue()


def test_preparing_the_environment_loads_no_mindspore():
    code = "import sys, mindmodel.parallel.environment; print('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_reader_that_goes_away_does_not_end_mindspores_kernel_compiler(compiling):
    from mindspore import Tensor, nn, ops

    class Fused(nn.Cell):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def construct(self, x):
            return ops.sigmoid(x * self.factor) * x + x

    zeros = Tensor([0.0, 0.0])
    with compiling():
        Fused(1.5)(zeros)
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"nobody reads this")
    os.close(writer)
    with compiling():
        assert Fused(2.5)(zeros).asnumpy().tolist() == [0.0, 0.0]


def test_a_worker_of_msrun_knows_its_rank_and_shares_the_cores(monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("MS_NODE_ID", "3")
    monkeypatch.setenv("MS_WORKER_NUM", "8")
    assert environment.place() == environment.Place(rank=3, num_ranks=8)
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    assert environment.place().is_scheduler
    monkeypatch.delenv("MS_ROLE")
    assert environment.place() == environment.Place()


def test_ranks_that_do_not_meet_are_told_where_and_for_how_long(runtime, monkeypatch):
    from mindmodel.parallel import runtime as module

    def never():
        raise RuntimeError("Topology build timed out.\nmore")

    monkeypatch.setattr(module.ms.communication, "init", never)
    for name, value in {"MS_SCHED_HOST": "head", "MS_SCHED_PORT": "8118", "MS_TOPO_TIMEOUT": "30"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match="did not all meet at head:8118 within 30 s: Topology build timed out$"):
        module._meet(Terminal(io.StringIO()))
