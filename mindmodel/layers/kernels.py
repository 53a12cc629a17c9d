"""The one place where a layer's kernels are chosen: the device's formulas behind the layers."""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms


class Kernels(NamedTuple):
    """Cell classes with the same interface on every device."""

    rms_norm: type
    swiglu: type
    causal_attention: type
    cross_entropy: type


def device_kernels() -> Kernels:
    """Kernels of the device that MindSpore is set to."""
    if ms.get_context("device_target") == "Ascend":
        from mindmodel.layers import ascend

        return Kernels(
            ascend.RMSNormAscend, ascend.SwiGLUAscend, ascend.CausalAttentionAscend, ascend.CrossEntropyAscend
        )
    from mindmodel.layers import cpu

    return Kernels(cpu.RMSNormCPU, cpu.SwiGLUCPU, cpu.CausalAttentionCPU, cpu.CrossEntropyCPU)
