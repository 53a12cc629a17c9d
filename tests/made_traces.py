"""A trace made of random numbers, in which every place is computed from its inputs by nothing at all."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from mindmodel.data.loader import Batch
from mindmodel.debug.traces.trace import LOGITS, Trace, flow

ROWS, COLUMNS = 8, 6
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def made_trace(num_layers: int = 2, dtype: str = "float32", **changes) -> Trace:
    """The same numbers each time."""
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.standard_normal(shape).astype(np.float32)

    activations = {place: draw(ROWS, COLUMNS) for place in flow(num_layers)}
    for place, inputs in flow(num_layers).items():
        if len(inputs) > 1:
            activations[place] = np.sum([activations[name] for name in inputs], axis=0)
    cells = ["embedding", *(f"layers.{i}.{name}" for i in range(num_layers) for name in ("attention.qkv", "mlp.down"))]
    weights = [f"{cell}.weight" for cell in (*cells, "norm", "head")]
    ids = np.arange(ROWS, dtype=np.int32).reshape(2, -1)
    trace = Trace(
        source="made", dtype=dtype, loss=2.5, grad_norm=0.5, lr=1e-3, batch=Batch(ids=ids, labels=ids + 1),
        tensors={
            "activation": {place: array.astype(DTYPES[dtype]) for place, array in activations.items()},
            "activation_grad": {place: draw(ROWS, COLUMNS) for place in activations if place != LOGITS},
            "weight_grad": {name: draw(COLUMNS, COLUMNS) for name in weights},
            "weight": {name: draw(COLUMNS, COLUMNS) for name in weights},
        },
    )
    return dataclasses.replace(trace, **changes)


def changed(trace: Trace, kind: str, place: str, change) -> Trace:
    """The trace with one array replaced by what a function makes of it."""
    arrays = {**trace.tensors[kind], place: change(trace.tensors[kind][place].copy())}
    return dataclasses.replace(trace, tensors={**trace.tensors, kind: arrays})
