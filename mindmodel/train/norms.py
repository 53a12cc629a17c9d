"""The columns `norms/PART/KIND` of a run's metrics: how large weights, gradients, updates and activations are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np

KINDS = "weight", "grad", "update", "activation"
PART = re.compile(r"(layers\.\d+|\w+)\.")


def part_of(parameter: str) -> str:
    """The part of the model that a parameter belongs to: embedding, layers.N, norm or head."""
    found = PART.match(parameter)
    assert found, parameter
    return found[1]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a rank has of a step's sums of squares, in their order, and what each counts in a sum over all ranks.

    Attributes:
        parameters: by name.
        activations: by part; none where they are not found.
    """

    parameters: Mapping[str, float]
    activations: Mapping[str, float]


def parts_of(num_layers: int) -> list[str]:
    """Of a model, in their order."""
    return ["embedding", *(f"layers.{index}" for index in range(num_layers)), "norm", "head"]


def own_squares(outputs: Sequence[np.ndarray], held: Held, parts: Sequence[str]) -> np.ndarray:
    """What this rank adds to the sums of squares of parts over all ranks, float64 [parts, 4] in the order of KINDS.

    Args:
        outputs: of a step: sums of squares of parameters, gradients and updates [3, n], and those of activations where
            there are any.
    """
    sums = np.zeros((len(parts), len(KINDS)))
    squares = outputs[0].astype(np.float64).T
    for (name, share), row in zip(held.parameters.items(), squares, strict=True):
        if share:
            sums[parts.index(part_of(name)), :-1] += share * row
    for activations in outputs[1:]:
        for (part, share), square in zip(held.activations.items(), activations, strict=True):
            sums[parts.index(part), -1] = share * square
    return sums


def norm_columns(squares: np.ndarray, parts: Sequence[str], grad_norm: float, num_tokens: int) -> dict[str, float]:
    """Norms by column; of what no rank has there is none.

    `weight` is the norm of a part's weights after the step, `grad` that of their gradient before clipping, `update`
    that of what the step took from them. `activation` is the norm of the vector that the part gives for a token, the
    root mean square over the tokens of the step.

    Args:
        squares: the sum of own_squares over all ranks; the gradients' in any unit.
        grad_norm: of the whole gradient, which those of the parts make up.
        num_tokens: of the step on all ranks.
    """
    weights, grads, updates, activations = squares.T
    with np.errstate(invalid="ignore"):
        grads = grads * (grad_norm**2 / (grads.sum() or 1.0))
    columns: dict[str, float] = {}
    for kind, sums in zip(KINDS, (weights, grads, updates, activations / num_tokens)):
        found = activations if kind == "activation" else weights
        for part in np.flatnonzero(found):
            columns[f"norms/{parts[part]}/{kind}"] = float(np.sqrt(sums[part]))
    return columns
