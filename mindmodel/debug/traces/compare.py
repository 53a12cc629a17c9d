"""Where two computations of one training step part: place by place, against what rounding explains. Pure NumPy.

A difference spreads: behind the place where two computations part, everything differs. So each place is judged by
itself: how much more it differs than what it was computed from. Rounding alone keeps that within a small multiple of
the difference at its inputs and of the dtype's precision, at any depth; another formula does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator, Optional

import numpy as np

from mindmodel.debug.traces.trace import KINDS, LOGITS, Trace, flow_among
from mindmodel.errors import TraceError

LOSS, GRAD_NORM = "loss", "grad_norm"
FRESH = {("float32", "float32"): 4e-6, ("float32", "bfloat16"): 4e-3, ("bfloat16", "bfloat16"): 2e-3}
"""By the two dtypes, the finer first: typical relative difference that a layer's own rounding explains.

Half of the last digit is 6e-8 in float32 and 2e-3 in bfloat16, and a layer rounds several times.
"""
SEVERAL = 3.0
"""Times that, where results are rounded in between: attention, and gradients by weights, summed over micro-batches."""
FRESH_SCALAR = 1e-6
"""Of the loss and the gradient norm, which are summed in float32 in either dtype."""
GAIN = 4.0
"""How much of its inputs' relative difference a layer may pass on. Measured: up to 1.5; sharp attention, up to 2.5."""
TAIL = 32.0
"""Largest over typical difference that rounding explains."""
SHOWN_MISFITS = 5


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two arrays are apart.

    Attributes:
        largest: absolute difference.
        relative: the largest one, relative to the number or, where that is larger, to the array's root mean square.
        typical: root mean square of the difference over that of the array.
    """

    largest: float = 0.0
    relative: float = 0.0
    typical: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Difference(Apart):
    """Of one place in two traces.

    Attributes:
        kind, place: as in Trace; the loss is an activation, the gradient norm a weight_grad.
        explained: the typical difference that rounding and the differences of its inputs explain.
        beyond: whether it is more than that.
    """

    kind: str
    place: str
    explained: float
    beyond: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Of two traces.

    Attributes:
        rows: in the order in which a step computes: activations and loss, their gradients from the last to the first,
            gradients by the weights, new weights.
        left_out: kind/place of what only one of the two has.
    """

    rows: tuple[Difference, ...]
    left_out: tuple[str, ...]

    @property
    def first(self) -> Optional[Difference]:
        """Where they part."""
        return next((row for row in self.rows if row.beyond), None)


def compare_traces(one: Trace, other: Trace) -> Comparison:
    """Compare two traces of the same step.

    Raises:
        TraceError: if they are of other tokens, or of models with other shapes.
    """
    _refuse_other_step(one, other)
    pair = _Pair(one, other)
    rows = (*pair.activations(), *pair.activation_grads(), *pair.weight_grads(), *pair.weights())
    names = [{f"{kind}/{place}" for kind in KINDS for place in trace.tensors[kind]} for trace in (one, other)]
    return Comparison(rows=rows, left_out=tuple(sorted(names[0] ^ names[1])))


def _refuse_other_step(one: Trace, other: Trace) -> None:
    what = f"{one.source}, {other.source}"
    for name in ("ids", "labels"):
        if not np.array_equal(getattr(one.batch, name), getattr(other.batch, name)):
            raise TraceError(f"{what}: computed from other tokens ({name}). Give both the same seed, sizes and --step.")
    for kind in KINDS:
        mine, others = one.tensors[kind], other.tensors[kind]
        told = [
            f"{place} is {list(mine[place].shape)} and {list(others[place].shape)}"
            for place in mine if place in others and mine[place].shape != others[place].shape
        ]
        if kind == "weight" and mine and others:
            told += [f"only one has '{place}'" for place in sorted(mine.keys() ^ others.keys())]
        if told:
            more = f" and {len(told) - SHOWN_MISFITS} more" if len(told) > SHOWN_MISFITS else ""
            raise TraceError(
                f"{what}: models of other shapes cannot be compared; {kind}: {'; '.join(told[:SHOWN_MISFITS])}{more}. "
                "Trace the same model twice."
            )
    if not any(one.tensors[kind].keys() & other.tensors[kind].keys() for kind in KINDS):
        raise TraceError(f"{what}: have no place in common.")


def _fresh(one: Trace, other: Trace) -> float:
    """Typical difference that a layer's own rounding explains.

    Two libraries round bfloat16 at points of their own: they are as far apart as both together are from float32.
    """
    first, second = (one.dtype, other.dtype) if other.dtype == "bfloat16" else (other.dtype, one.dtype)
    if first == "bfloat16" and one.library != other.library:
        return 2 * FRESH["float32", "bfloat16"]
    return FRESH[first, second]


def _apart(one: np.ndarray, other: np.ndarray) -> Apart:
    """Not a number is infinitely far from a number, and equal to itself."""
    one, other = one.astype(np.float32), other.astype(np.float32)
    with np.errstate(all="ignore"):
        alike = (one == other) | (np.isnan(one) & np.isnan(other))
        if alike.all():
            return Apart()
        apart = np.where(alike, 0, np.abs(one - other))
        apart[np.isnan(apart)] = np.inf
        size = np.fmax(np.abs(one), np.abs(other))
        size[~np.isfinite(size)] = 0
        rms = _root_mean_square(size)
        return Apart(
            largest=float(apart.max()),
            relative=float(np.nanmax(apart / np.maximum(size, rms))),  # among zeros those that agree are 0 / 0
            typical=_root_mean_square(apart) / rms if rms > 0 else np.inf,
        )


def _root_mean_square(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array), dtype=np.float64)))


class _Pair:
    """Two traces, and how far apart they are at each place that was looked at."""

    def __init__(self, one: Trace, other: Trace) -> None:
        self.one, self.other = one, other
        self.fresh = _fresh(one, other)
        common = {(kind, place) for kind in KINDS for place in one.tensors[kind] if place in other.tensors[kind]}
        self.compared = {kind for kind, _ in common}
        self.flow = flow_among(place for _, place in common)
        self.apart: dict[tuple[str, str], Apart] = {}
        self.guessed: dict[tuple[str, str], Apart] = {}

    def arrays(self, kind: str, place: str) -> Optional[tuple[np.ndarray, np.ndarray]]:
        mine, others = self.one.tensors[kind], self.other.tensors[kind]
        return (mine[place], others[place]) if place in mine and place in others else None

    def measure(self, kind: str, place: str, explained: float, tail: float = 0.0) -> Iterator[Difference]:
        """The difference at a place that both have.

        Args:
            explained: typical difference that is.
            tail: largest relative difference of its inputs.
        """
        arrays = self.arrays(kind, place)
        if arrays is None:
            return
        apart = self.apart[kind, place] = _apart(*arrays)
        beyond = apart.typical > explained or apart.relative > TAIL * explained + GAIN * tail
        yield Difference(kind=kind, place=place, **vars(apart), explained=explained, beyond=beyond)

    def scalar(self, kind: str, place: str, explained: float) -> Difference:
        """Of a number of the traces themselves."""
        one, other = (np.array([getattr(trace, place)]) for trace in (self.one, self.other))
        apart = _apart(one, other)
        beyond = apart.typical > explained
        return Difference(kind=kind, place=place, **vars(apart), explained=explained, beyond=beyond)

    def inputs(self, place: str) -> Apart:
        """How far apart the sum is that an activation is computed from."""
        known = [arrays for arrays in (self.arrays("activation", name) for name in self.flow[place]) if arrays]
        if len(known) == len(self.flow[place]) > 1:
            return _apart(*(sum(array.astype(np.float32) for array in side) for side in zip(*known)))
        return _widest(self.reached(name) for name in self.flow[place])

    def reached(self, place: str) -> Apart:
        """Of an activation; where one of the two lacks it, of what it is computed from."""
        return self.apart.get(("activation", place)) or self.supposed("activation", place, self.flow[place])

    def supposed(self, kind: str, place: str, inputs: Iterable[str]) -> Apart:
        """Of a place that was not compared, from those before it. Where none of a kind was, each place adds its own
        rounding, as independent errors add."""
        if (kind, place) not in self.guessed:
            reached = self.reached if kind == "activation" else self.reached_grad
            own = 0.0 if kind in self.compared else self.fresh
            widest = _widest(map(reached, inputs))
            self.guessed[kind, place] = Apart(
                largest=widest.largest,
                relative=float(np.hypot(widest.relative, TAIL * own)),
                typical=float(np.hypot(widest.typical, own)),
            )
        return self.guessed[kind, place]

    def activations(self) -> Iterator[Difference]:
        """From the first to the loss."""
        for place in self.flow:
            inputs = self.inputs(place)
            fresh = self.fresh * (SEVERAL if place.endswith("causal_attention") else 1)
            yield from self.measure("activation", place, fresh + GAIN * inputs.typical, inputs.relative)
        logits = self.arrays("activation", LOGITS) or (np.array([self.one.loss]),)
        size = max(_root_mean_square(array.astype(np.float32)) for array in logits) / max(abs(self.one.loss), 1e-6)
        yield self.scalar("activation", LOSS, FRESH_SCALAR + GAIN * self.reached(LOGITS).typical * size)

    def activation_grads(self) -> Iterator[Difference]:
        """From the last to the first."""
        for place in reversed(self.flow):
            users = [name for name, inputs in self.flow.items() if place in inputs]
            grads = _widest(self.reached_grad(name) for name in users)
            values = _widest(self.reached(name) for name in (place, *users))
            explained = self.fresh + GAIN * (grads.typical + values.typical)
            yield from self.measure("activation_grad", place, explained, max(grads.relative, values.relative))

    def reached_grad(self, place: str) -> Apart:
        """Of the gradient by an activation; where one of the two lacks it, of those that it is computed from."""
        users = (name for name, inputs in self.flow.items() if place in inputs)
        return self.apart.get(("activation_grad", place)) or self.supposed("activation_grad", place, users)

    def weight_grads(self) -> Iterator[Difference]:
        """From the last weight to the first, and their norm."""
        names = [name for name in self.one.tensors["weight_grad"] if name in self.other.tensors["weight_grad"]]
        for name in reversed(names):
            used = self.users_of_weight(name, tied="head.weight" not in names)
            grads = _widest(self.reached_grad(place) for place in used)
            values = _widest(self.reached(near) for place in used for near in (place, *self.flow[place]))
            explained = SEVERAL * self.fresh + GAIN * (grads.typical + values.typical)
            yield from self.measure("weight_grad", name, explained, max(grads.relative, values.relative))
        of_weights = max((self.apart["weight_grad", name].typical for name in names), default=self.fresh)
        yield self.scalar("weight_grad", GRAD_NORM, FRESH_SCALAR + of_weights)

    def users_of_weight(self, name: str, tied: bool) -> list[str]:
        """Places that a weight takes part in."""
        cell = name.removesuffix(".weight")
        if cell.endswith(("q_norm", "k_norm")):
            cell = cell.rpartition(".")[0] + ".causal_attention"
        used = [cell] if cell in self.flow else []
        return used + [LOGITS] if cell == "head" or (cell == "embedding" and tied) else used

    def weights(self) -> Iterator[Difference]:
        """New weights. AdamW's first step is the learning rate times the gradient's sign: gradients that agree make it
        agree, and where they are smaller than their own difference it may be anything."""
        for name, one in self.one.tensors["weight"].items():
            arrays = self.arrays("weight", name)
            if arrays is None:
                continue
            apart, allowed = _apart(*arrays), self.allowed(name, one)
            explained = _root_mean_square(allowed) / max(_root_mean_square(one), 1e-30)
            beyond = bool((np.abs(arrays[0] - arrays[1]) > allowed).any()) or not np.isfinite(apart.largest)
            yield Difference(kind="weight", place=name, **vars(apart), explained=explained, beyond=beyond)

    def allowed(self, name: str, weight: np.ndarray) -> np.ndarray:
        """Difference of every number of a weight that those of the gradients explain."""
        grads, lr = self.arrays("weight_grad", name), max(self.one.lr, self.other.lr)
        rounding = 4 * np.finfo(np.float32).eps * (np.abs(weight) + lr)
        if grads is None:
            return rounding + 2 * lr
        apart, norms = np.abs(grads[0] - grads[1]), (self.one.grad_norm, self.other.grad_norm)
        with np.errstate(all="ignore"):
            turned = apart / np.fmin(np.abs(grads[0]), np.abs(grads[1]))
            scaled = abs(norms[0] - norms[1]) / max(*norms, 1e-30)
        return rounding + lr * np.minimum(2.0, 4.0 * (np.where(apart == 0, 0, turned) + scaled))


def _widest(many: Iterable[Apart]) -> Apart:
    found = list(many)
    return Apart(
        largest=max((one.largest for one in found), default=0.0),
        relative=max((one.relative for one in found), default=0.0),
        typical=max((one.typical for one in found), default=0.0),
    )
