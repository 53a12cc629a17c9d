"""The one place where a layer's kernels are chosen: the device's formulas behind the layers."""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms


class Kernels(NamedTuple):
    """Cell classes with the same interface on every device: those of the layers, and those of the optimizer."""

    rms_norm: type
    swiglu: type
    causal_attention: type
    cross_entropy: type
    square_sum: type
    finite_or_zero: type


def device_kernels() -> Kernels:
    """Kernels of the device that MindSpore is set to."""
    if ms.get_context("device_target") == "Ascend":
        from mindmodel.layers import ascend

        return Kernels(
            rms_norm=ascend.RMSNormAscend,
            swiglu=ascend.SwiGLUAscend,
            causal_attention=ascend.CausalAttentionAscend,
            cross_entropy=ascend.CrossEntropyAscend,
            square_sum=ascend.SquareSumAscend,
            finite_or_zero=ascend.FiniteOrZeroAscend,
        )
    from mindmodel.layers import cpu

    return Kernels(
        rms_norm=cpu.RMSNormCPU,
        swiglu=cpu.SwiGLUCPU,
        causal_attention=cpu.CausalAttentionCPU,
        cross_entropy=cpu.CrossEntropyCPU,
        square_sum=cpu.SquareSumCPU,
        finite_or_zero=cpu.FiniteOrZeroCPU,
    )
