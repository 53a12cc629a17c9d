"""The one place where a layer's kernels are chosen: the device's formulas behind the layers."""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms

from mindmodel.layers.native import library


class Kernels(NamedTuple):
    """Cell classes with the same interface on every device: those of the layers, and those of the optimizer."""

    embedding: type
    linear: type
    rms_norm: type
    residual_norm: type
    swiglu: type
    causal_attention: type
    head_loss: type
    square_sum: type
    square_sums: type
    adamw: type


def device_kernels() -> Kernels:
    """Kernels of the device that MindSpore is set to; on CPU the native ones where their library is in use."""
    if ms.get_context("device_target") == "Ascend":
        from mindmodel.layers import ascend

        return ascend.KERNELS
    if library.in_use() is not None:
        from mindmodel.layers.native import cells

        return cells.KERNELS
    from mindmodel.layers import cpu

    return cpu.KERNELS
