"""A step of two layers as it was timed: kernels, of which MindSpore named those of the backward pass alike."""

from __future__ import annotations

import numpy as np

from mindmodel.debug.graph.sources import Source
from mindmodel.debug.profile.kernel_graph import Kernel, KernelGraph
from mindmodel.debug.profile.recording import Event, Recording, Step
from mindmodel.debug.profile.step_profile import profile_of
from mindmodel.dryrun.graph import TensorType

NET = "Default/network-DecoderLoss/decoder-Decoder"
LINEAR = "mlp-MLP/down-Linear/linear-LinearCPU"
SHARED = f"Gradients/{NET}/layers-CellList/1-Block/{LINEAR}/Grad_MatMul"
MS = 1_000_000
FIXED = 1024
"""Bytes of the pool that no kernel made."""


def in_layer(number, operator):
    return f"{NET}/layers-CellList/{number}-Block/{LINEAR}/{operator}-op0"


def kernel(key, scope, inputs, *, shape=(64, 64), parts=(), operator=None, results=1):
    kind = TensorType(dtype=np.dtype(np.float32), shape=shape)
    operator = operator or scope.rpartition("/")[2].partition("-op")[0]
    return Kernel(key=key, scope=scope, operator=operator, inputs=inputs, operands=(kind, kind),
                  results=(kind,) * results, flags=(False, True), parts=parts)


LOSS_PART = kernel("p", "Default/network-DecoderLoss/loss-HeadLoss/head_loss-HeadLossCPU/Sub-op0", ())
MATMULS = [f"{SHARED}/MatMul-op{number}" for number in range(4)]
KERNELS = [
    kernel("x", f"{NET}/embedding-Embedding/Gather-op0", ("%para1_ids",)),
    kernel("h0", in_layer(0, "MatMul"), ("x", "%para2_layers.0.mlp.down.weight")),
    kernel("h1", in_layer(1, "MatMul"), ("h0", "%para3_layers.1.mlp.down.weight")),
    kernel("dh", "Default/GraphKernel_Sub_fusion-op0", ("h1",), parts=(LOSS_PART,), operator="fused Sub"),
    kernel("w1", MATMULS[0], ("dh", "h0")),
    kernel("d1", MATMULS[1], ("dh", "%para3_layers.1.mlp.down.weight")),
    kernel("m1", "Default/Mul-op0", ("d1",)),
    kernel("w0", MATMULS[2], ("m1", "x")),
    kernel("d0", MATMULS[3], ("m1", "%para2_layers.0.mlp.down.weight")),
    kernel("n", "Default/Custom-op0", ("w0", "w1"), shape=(1,), operator="Custom:square_sum"),
    kernel("s", "Default/Sqrt-op0", ("n",), shape=(1,)),
    kernel("a1", "Default/optimizer-AdamW/Adam-op0",
           ("%para3_layers.1.mlp.down.weight", "%para4_first_moment.layers.1.mlp.down.weight", "w1", "s"), shape=(1,)),
    kernel("a0", "Default/optimizer-AdamW/Adam-op1",
           ("%para2_layers.0.mlp.down.weight", "%para5_first_moment.layers.0.mlp.down.weight", "w0", "s"), shape=(1,)),
]
GRAPH = KernelGraph(kernels={one.key: one for one in KERNELS}, bundles={}, output="s")
BYTES = 64 * 64 * 4
ALIVE = [1, 2, 2, 2, 3, 4, 4, 4, 4]
"""Matrices that are held while each of the first kernels runs: its results, and what is still to be read."""


def step(begin_ms, kernel_ms=2, gap_ms=1, kernels=KERNELS):
    """Data in the first millisecond, then the kernels one after another, and a millisecond at the end."""
    begin, events, memory = begin_ms * MS, [], []
    now = begin + MS
    for number, one in enumerate(kernels):
        events.append(Event(scope=one.scope, begin_ns=now, end_ns=now + kernel_ms * MS))
        memory.append((now - 10, FIXED + BYTES * (ALIVE[number] if number < len(ALIVE) else 2)))
        now += (kernel_ms + gap_ms) * MS
    return Step(begin_ns=begin, data_ns=begin + MS, end_ns=now + MS, events=tuple(events), memory=tuple(memory))


RECORDING = Recording(
    graph=GRAPH,
    sources={LOSS_PART.scope: Source(file="loss.py", line=7)},
    steps=(step(0), step(100, kernel_ms=4)),
    plain_s=(0.04, 0.05, 0.9),
    parameter_bytes={"weights": 2 * BYTES, "optimizer": 4 * BYTES},
    process_bytes=1 << 20,
    peak_flops=1e9,
    peak_name="measured",
)
PROFILE = profile_of(RECORDING, recipe="demo", kernels="graph kernels", threads=2)
