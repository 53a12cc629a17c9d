"""MindSpore's state for this process: device, graph mode, fusion, threads. The only file that sets its context."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindmodel.errors import LayoutError
from mindmodel.machine import ascend_devices, usable_cores
from mindmodel.parallel.graph_cache import GraphCache
from mindmodel.recipe.schema import RuntimeSection

PEAK_MATMUL_SIZE = 1024
PEAK_MEASURING_S = 0.5
ASCEND_PEAK_FLOPS = 295e12  # 910B3; figures of this chip are also quoted against 313e12, which adds the vector unit


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What was set.

    Attributes:
        device: CPU or Ascend.
        threads: CPU threads.
        graph_kernels: whether elementwise operators are fused (CPU; needs the package decorator).
        cache: where graphs are compiled.
    """

    device: str
    threads: int
    graph_kernels: bool
    cache: GraphCache

    @property
    def fusion(self) -> str:
        """In words."""
        return "fused graph kernels" if self.graph_kernels else "graph kernels not fused"


def start_runtime(runtime: RuntimeSection) -> Runtime:
    """Set MindSpore up for graph mode on the recipe's device.

    Raises:
        LayoutError: if the device is not there.
    """
    cache = GraphCache()
    ms.set_context(mode=ms.GRAPH_MODE)
    device = _set_device(runtime.device)
    ms.set_recursion_limit(20000)  # deep decoders nest deeper than the default
    threads = runtime.threads or usable_cores()
    graph_kernels = device == "CPU" and importlib.util.find_spec("decorator") is not None
    if graph_kernels:
        ms.set_context(enable_graph_kernel=True)
    if device == "CPU":
        ms.set_context(runtime_num_threads=threads)
    if runtime.deterministic:
        ms.set_deterministic(True)
    return Runtime(device=device, threads=threads, graph_kernels=graph_kernels, cache=cache)


def _set_device(asked: str) -> str:
    """`auto` is the Ascend device where there is one."""
    has_ascend = ascend_devices() > 0
    if asked == "ascend" and not has_ascend:
        raise LayoutError(
            "runtime.device: 'ascend' is asked for and this machine has no Ascend device (/dev/davinci*). "
            "Use cpu or auto."
        )
    device = "Ascend" if has_ascend and asked != "cpu" else "CPU"
    ms.set_device(device)
    return device


def peak_flops(runtime: Runtime) -> tuple[float, str]:
    """The FLOP/s that utilisation is measured against, and its name.

    On CPU the best of many float32 MatMuls of 1024 x 1024 x 1024, within half a second; on Ascend the matrix unit's
    peak in bfloat16.
    """
    if runtime.device == "Ascend":
        return ASCEND_PEAK_FLOPS, "Ascend 910B3, bfloat16 matrix unit"
    matmul = ops.MatMul()
    square = Tensor(np.ones((PEAK_MATMUL_SIZE, PEAK_MATMUL_SIZE), np.float32))
    matmul(square, square).asnumpy()
    best_s = float("inf")
    end = time.perf_counter() + PEAK_MEASURING_S
    while (start := time.perf_counter()) < end:
        matmul(square, square).asnumpy()
        best_s = min(best_s, time.perf_counter() - start)
    size = "x".join([str(PEAK_MATMUL_SIZE)] * 3)
    return 2 * PEAK_MATMUL_SIZE**3 / best_s, f"measured: float32 MatMul {size} on {runtime.threads} CPU threads"
