"""MindSpore's state for this process: device, mode, fusion, threads. The only file that sets its context."""

from __future__ import annotations

import importlib.util
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindmodel.build_cache import BuildError
from mindmodel.errors import LayoutError, TrainingError, first_line
from mindmodel.layers.native import library
from mindmodel.machine import ascend_devices
from mindmodel.parallel.environment import num_threads, place
from mindmodel.parallel.graph_cache import GraphCache, graph_key
from mindmodel.parallel.ranks import Ranks
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal

ANYWHERE = ("eval", "generate")
"""Purposes for which a run that was trained on Ascend needs none."""
CPU_MATMUL_SIZE = 1024
PEAK_MEASURING_S = 0.5
ASCEND_PEAK_FLOPS = 295e12  # 910B3; figures of this chip are also quoted against 313e12, which adds the vector unit


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What was set.

    Attributes:
        device: CPU or Ascend.
        mode: the recipe's runtime.mode.
        threads: CPU threads.
        native_kernels: whether layers take the C++ kernels (CPU).
        graph_kernels: whether elementwise operators are fused (CPU; needs the package decorator).
        cache: where graphs are compiled.
        ranks: the processes of the job.
    """

    device: str
    mode: str
    threads: int
    native_kernels: bool
    graph_kernels: bool
    cache: GraphCache
    ranks: Ranks

    @property
    def kernels(self) -> str:
        """In words, and how they are run."""
        if self.device == "Ascend":
            name = "Ascend's fused operators"
        elif self.native_kernels:
            name = "native kernels"
        else:
            name = "fused graph kernels" if self.graph_kernels else "graph kernels not fused"
        return name if self.mode == "graph" else f"{name}, one by one from Python"

    @contextmanager
    def compiling(self, what: str, terminal: Terminal, kept: bool = False) -> Iterator[None]:
        """A block that compiles graphs, which the terminal shows.

        In PyNative mode it is an ordinary block: the terminal belongs to what runs in it, which may be a debugger.

        Args:
            what: as `the training graph`.
            kept: as GraphCache.compiling's.
        """
        if self.mode != "graph":
            yield
            return
        with terminal.working(f"compiling {what}"), self.cache.compiling(kept):
            yield


def start_runtime(recipe: Recipe, purpose: str, terminal: Optional[Terminal] = None) -> Runtime:
    """Set MindSpore up for the recipe's mode and device.

    Args:
        recipe: with `model.vocab_size` filled in.
        purpose: what the first graph that is compiled will be, as `train`.
        terminal: where it is told that kernels are built, or why they cannot be.

    Raises:
        LayoutError: if the device is not there, or native kernels are asked for and cannot be had.
    """
    runtime, cache, here, terminal = recipe.runtime, GraphCache(), place(), terminal or Terminal()
    in_graphs = runtime.mode == "graph"
    ms.set_context(mode=ms.GRAPH_MODE if in_graphs else ms.PYNATIVE_MODE)
    device = _set_device(runtime.device, purpose)
    if runtime.deterministic:
        ms.set_deterministic(True)  # before the ranks meet, or their sums are left out
    if not in_graphs:
        ms.runtime.launch_blocking()  # else an operator's failure is raised lines after the one that called it
    if device == "Ascend":
        ms.set_context(jit_config={"jit_level": "O0"})  # as dry runs compile: kernel by kernel
    if here.num_ranks > 1:
        _meet(terminal)
    ms.set_recursion_limit(20000)  # deep decoders nest deeper than the default
    threads = num_threads()
    native_kernels = device == "CPU" and _use_native_kernels(runtime.cpu_kernels, threads, terminal)
    # fused kernels know no bfloat16; between native kernels little is left to fuse, and compiling takes a third
    can_fuse = in_graphs and device == "CPU" and not native_kernels and recipe.train.compute_dtype == "float32"
    graph_kernels = can_fuse and importlib.util.find_spec("decorator") is not None
    ms.set_context(enable_graph_kernel=graph_kernels)
    if device == "CPU":
        ms.set_context(runtime_num_threads=threads)
    if in_graphs and runtime.compile_cache:
        cache.keep_graph(graph_key(recipe, f"{purpose} {device} {graph_kernels}", library.in_use()))
    return Runtime(
        device=device,
        mode=runtime.mode,
        threads=threads,
        native_kernels=native_kernels,
        graph_kernels=graph_kernels,
        cache=cache,
        ranks=Ranks(here),
    )


@contextmanager
def operators_unfused(runtime: Runtime) -> Iterator[None]:
    """Graphs that are compiled inside have their operators one by one."""
    ms.set_context(enable_graph_kernel=False)
    try:
        yield
    finally:
        ms.set_context(enable_graph_kernel=runtime.graph_kernels)


def _meet(terminal: Terminal) -> None:
    """Wait until all processes of the job are there, within the time limit that msrun has set.

    Raises:
        TrainingError: if they are not.
    """
    try:
        with terminal.working("waiting for the other ranks"):
            ms.communication.init()
    except RuntimeError as error:
        limit = os.environ.get("MS_TOPO_TIMEOUT", "")
        raise TrainingError(
            f"the ranks of this job did not all meet at {os.environ.get('MS_SCHED_HOST')}:"
            f"{os.environ.get('MS_SCHED_PORT')} within {limit} s: {first_line(error)}"
        ) from error


def serve_ranks() -> None:
    """Let the ranks of a job find one another, until the last has gone: what msrun's scheduler process is for."""
    ms.set_device("CPU")
    ms.communication.init()


def _use_native_kernels(asked: str, threads: int, terminal: Terminal) -> bool:
    """`auto` is native wherever the library can be built; why it cannot is said once."""
    library.use(None)
    if asked == "graph":
        return False
    try:
        library.use(library.find_or_build(terminal.working), threads)
    except BuildError as error:
        if asked == "native":
            raise LayoutError(f"runtime.cpu_kernels: 'native' cannot be had: {error}. Use auto or graph.") from error
        terminal.say(f"no native CPU kernels, the graph's formulas are used instead: {error}")
        return False
    return True


def _set_device(asked: str, purpose: str) -> str:
    """`auto` is the Ascend device where there is one; so is `ascend` for what a run is good for anywhere."""
    if asked == "ascend" and purpose not in ANYWHERE and not ascend_devices():
        raise LayoutError(
            "runtime.device: 'ascend' is asked for and this machine has no Ascend device (/dev/davinci*). "
            "Use cpu or auto."
        )
    device = "Ascend" if asked != "cpu" and ascend_devices() else "CPU"
    ms.set_device(device)
    return device


class Product(nn.Cell):
    """The product of a matrix with itself, as a graph: outside of one MatMul is only half as fast.

    Inputs, outputs: a square matrix.
    """

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul()

    def construct(self, x):
        return self.matmul(x, x)


class MatmulProbe:
    """A matmul of square matrices, compiled once, to see how fast this rank alone is.

    On CPU float32, 1024 x 1024 x 1024; on Ascend bfloat16, 4096 x 4096 x 4096.
    """

    def __init__(self, runtime: Runtime) -> None:
        on_ascend = runtime.device == "Ascend"
        self.size, dtype = (4096, ms.bfloat16) if on_ascend else (CPU_MATMUL_SIZE, ms.float32)
        self._product, self._square = Product(), Tensor(np.ones((self.size, self.size), np.float32), dtype)
        with runtime.cache.compiling():
            self._multiply()

    def _multiply(self) -> None:
        self._product(self._square).asnumpy()

    def flops(self, seconds: float) -> float:
        """FLOP/s of the fastest of as many as fit into some seconds."""
        best_s = float("inf")
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            self._multiply()
            best_s = min(best_s, time.perf_counter() - start)
        return 2 * self.size**3 / best_s


def peak_flops(runtime: Runtime) -> tuple[float, str]:
    """The FLOP/s that utilisation is measured against, of one rank, and its name.

    On CPU the best matmul of half a second; on Ascend the matrix unit's peak in bfloat16.
    """
    if runtime.device == "Ascend":
        return ASCEND_PEAK_FLOPS, "Ascend 910B3, bfloat16 matrix unit"
    size = "x".join([str(CPU_MATMUL_SIZE)] * 3)
    name = f"measured: float32 MatMul {size} on {runtime.threads} CPU threads"
    return MatmulProbe(runtime).flops(PEAK_MEASURING_S), name
