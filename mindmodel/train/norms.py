"""The columns `norms/PART/KIND` of a run's metrics: how large weights, gradients, updates and activations are."""

from __future__ import annotations

import re
from typing import Sequence

import numpy as np

KINDS = "weight", "grad", "update"
"""Rows of what a step gives for its parameters."""
PART = re.compile(r"(layers\.\d+|\w+)\.")


def part_of(parameter: str) -> str:
    """The part of the model that a parameter belongs to: embedding, layers.N, norm or head."""
    found = PART.match(parameter)
    assert found, parameter
    return found[1]


def norm_columns(
    outputs: Sequence[np.ndarray], parameters: Sequence[str], grad_norm: float, num_tokens: int
) -> dict[str, float]:
    """Norms by column.

    `weight` is the norm of a part's weights after the step, `grad` that of their gradient before clipping, `update`
    that of what the step took from them. `activation` is the norm of the vector that the part gives for a token, the
    root mean square over the tokens of the step.

    Args:
        outputs: of a step: sums of squares of parameters, of gradients in any unit and of updates [3, n], and where
            there are any, of activations [num_layers + 2].
        parameters: their n names.
        grad_norm: of the whole gradient, which those of the parts make up.
        num_tokens: of the step on all ranks.
    """
    parts = [part_of(name) for name in parameters]
    columns: dict[str, float] = {}
    squares = outputs[0].astype(np.float64)
    with np.errstate(invalid="ignore"):
        squares[1] *= grad_norm**2 / (squares[1].sum() or 1.0)
    for part in dict.fromkeys(parts):
        held = [index for index, name in enumerate(parts) if name == part]
        for kind, row in zip(KINDS, squares):
            columns[f"norms/{part}/{kind}"] = float(np.sqrt(row[held].sum()))
    for activations in outputs[1:]:
        givers = ["embedding", *(f"layers.{index}" for index in range(len(activations) - 2)), "norm"]
        for part, square in zip(givers, activations):
            columns[f"norms/{part}/activation"] = float(np.sqrt(np.float64(square) / num_tokens))
    return columns
