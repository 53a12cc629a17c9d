"""What is alive at the peak of a step, and how many bytes are alive while its kernels run.

Tensors alike in all layers, or in all micro-batches, are one group. A tensor's place is the Cell that computed it,
named as the parameters are. Casts and collectives are followed back to what they copy, since the compiler names them
after whichever Cell it met first; operators of the backward pass that layers share may carry another layer's number.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any, Iterator, Mapping, Optional, Sequence

from mindmodel.dryrun.memory_trace import (
    COPIES,
    LIVE_KINDS,
    NO_KERNEL,
    PREFIXES,
    Block,
    Task,
    Trace,
    alive_at,
    kinds_of,
    peak_moment,
)
from mindmodel.dryrun.scopes import GRADIENTS, STEP, PlacedKernel, is_update, of_any_layer, part_of, place_of

PASSED_ON = (*COPIES, "AllReduce", "ReduceScatter", "AllToAll")
"""Operators whose result is what they read: in another dtype, of other ranks too, or elsewhere."""
PHASES = ("forward", "recompute", "backward", "optimizer")
REST = "rest"
"""The part of the model that holds what is in none."""
PARTS = ("embedding", "norm", "head", "loss")
"""Of a model outside its layers."""
DTYPES = {"BFloat16": "bf16", "Float32": "fp32", "Float16": "fp16"}
MAX_COLUMNS = 600
"""Of a curve that is shown; each has the highest of its kernels."""
MAX_DISTANCE = 6
"""Operators from a gradient to its parameter's accumulator or update."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors alive at the peak that differ in nothing but their layer or micro-batch.

    Attributes:
        place: the Cell that computed them, the parameter that they belong to, or of a constant the Cell that reads it.
        made_by: the operator that computed them and those that copied the result, as in MatMul > Cast.
        phase: in which they were made; empty for what is there before the step.
        num_kernels: that run while one is held, the median; None if it is held through all steps.
        last_read: the operator that reads them last, and its phase.
        unread_bytes: of those that no kernel reads after the peak; weights and the optimizer's state are always read.
    """

    kind: str
    place: str
    made_by: str
    phase: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    num_bytes: int
    num_kernels: Optional[int]
    last_read: str
    unread_bytes: int


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A curve with few points: of several kernels in a row the one with most bytes.

    Attributes:
        width: kernels in a row; the last column may have fewer.
        kernels: index of each column's, in the order in which they ran.
        by_kind: bytes alive while these run.
    """

    width: int
    kernels: tuple[int, ...]
    by_kind: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Live:
    """Memory of a rank in one step.

    Attributes:
        peak_bytes: as MindSpore measured.
        peak_index: of the kernel at the peak, in the order of kernels.
        kernels: collectives too, and no views, in the order in which they ran.
        by_kind: bytes at the peak, which add up to `peak_bytes`.
        by_part: the same by layer and other parts of the model, each by kind.
        groups: what is alive at the peak, largest first.
        curve: bytes of each kind that are alive while each kernel runs.
    """

    peak_bytes: int
    peak_index: int
    kernels: tuple[PlacedKernel, ...]
    by_kind: Mapping[str, int]
    by_part: Mapping[str, Mapping[str, int]]
    groups: tuple[Group, ...]
    curve: Mapping[str, tuple[int, ...]]

    @property
    def peak_kernel(self) -> PlacedKernel:
        """The kernel for which most bytes are alive."""
        return self.kernels[self.peak_index]

    @property
    def by_phase(self) -> dict[str, int]:
        """Most bytes alive in each phase."""
        totals: dict[str, int] = {}
        for kernel, total in zip(self.kernels, self._totals()):
            totals[kernel.phase] = max(total, totals.get(kernel.phase, 0))
        return {phase: totals[phase] for phase in PHASES if phase in totals}

    def _totals(self) -> list[int]:
        return [sum(column) for column in zip(*self.curve.values())]

    def columns(self) -> Columns:
        """The curve for a plot."""
        totals, count = self._totals(), len(self.kernels)
        width = -(-count // MAX_COLUMNS)
        highest = tuple(
            max(range(start, min(start + width, count)), key=totals.__getitem__) for start in range(0, count, width)
        )
        by_kind = {kind: tuple(numbers[index] for index in highest) for kind, numbers in self.curve.items()}
        return Columns(width=width, kernels=highest, by_kind=by_kind)

    def to_json(self) -> dict[str, Any]:
        """As the command prints it for scripts."""
        columns = self.columns()
        return {
            "peak": {"bytes": self.peak_bytes, "kernel": self.peak_index, **dataclasses.asdict(self.peak_kernel)},
            "num_kernels": len(self.kernels),
            "by_kind": dict(self.by_kind),
            "by_phase": self.by_phase,
            "by_part": {part: dict(kinds) for part, kinds in self.by_part.items()},
            "groups": [dataclasses.asdict(group) for group in self.groups],
            "curve": {"kernels": columns.kernels, "by_kind": columns.by_kind},
        }


def live_of(trace: Trace, peak_bytes: int, vocab_size: int, num_tokens: int) -> Live:
    """What is alive in a step; what MindSpore measured and no block accounts for is `other`.

    Args:
        peak_bytes: that MindSpore measured.
        vocab_size, num_tokens: as of memory_trace.kinds_of.
    """
    return _Step(trace, kinds_of(trace, vocab_size, num_tokens)).live(peak_bytes)


class _Step:
    """A trace with its kernels in order."""

    def __init__(self, trace: Trace, kinds: Mapping[int, str]):
        self.trace, self.kinds, self.moment = trace, kinds, peak_moment(trace)
        tasks = [task for task in trace.tasks if _runs(task)]
        self.times = [task.time for task in tasks]
        phases = _phases([task.name for task in tasks])
        self.kernels = tuple(
            PlacedKernel(operator=task.operator, place=self._place_of_task(task), phase=phase)
            for task, phase in zip(tasks, phases)
        )
        self.at = dict(zip(self.times, self.kernels))

    def live(self, peak_bytes: int) -> Live:
        tensors = [self._tensor(block) for block in alive_at(self.trace, self.moment)]
        unseen = peak_bytes - sum(tensor.num_bytes for tensor in tensors)
        by_part = _by_part(tensors)
        by_part.setdefault(REST, dict.fromkeys(LIVE_KINDS, 0))["other"] += unseen
        return Live(
            peak_bytes=peak_bytes,
            peak_index=min(self._index(self.moment), len(self.kernels) - 1),
            kernels=self.kernels,
            by_kind={kind: sum(part[kind] for part in by_part.values()) for kind in LIVE_KINDS},
            by_part=by_part,
            groups=tuple(sorted(_grouped(tensors), key=lambda group: (-group.num_bytes, *_likeness(group)))),
            curve=self._curve(),
        )

    def _place_of_task(self, task: Task) -> str:
        """Its Cell; of a product that makes a gradient, the Cell of the parameter."""
        made = [key for key in task.outputs if key not in task.inputs and self.kinds.get(key) == "gradients"]
        updated = self._updated(made[0]) if made and task.name.startswith(GRADIENTS) else None
        return updated.removesuffix(".weight") if updated else place_of(task.name)

    def _index(self, time: int) -> int:
        """The kernel that runs at a time, or next."""
        return bisect_left(self.times, time)

    def _readers(self, key: int) -> list[Task]:
        return [task for task in self.trace.users.get(key, ()) if task.time in self.at]

    def _tensor(self, block: Block) -> Group:
        """A group of one, with its layer's number."""
        kind, readers = self.kinds[block.key], self._readers(block.key)
        maker = None if block.source == "Weight" else self.trace.makers.get(block.key)  # a weight's is its update
        stays, chain = block.source != "Kernel", self._chain(block.key)
        dtype, shape = self.trace.type_of(block.key)
        made = self.at.get(maker.time) if maker else None
        return Group(
            kind=kind,
            place=self._place(block, kind, chain),
            made_by=" > ".join(task.operator for task in reversed(chain)),
            phase=made.phase if made else "",
            dtype=DTYPES.get(dtype, dtype.lower()),
            shape=shape,
            count=1,
            num_bytes=block.num_bytes,
            num_kernels=None if stays else self._index(block.end) - self._index(block.key),
            last_read=self.at[readers[-1].time].as_reader if readers else "",
            unread_bytes=0 if self._is_read(block, readers) else block.num_bytes,
        )

    def _is_read(self, block: Block, readers: Sequence[Task]) -> bool:
        """Whether a block is still to be read; what stays is, if it is read in a step at all."""
        if block.source == "Weight":
            return True
        return bool(readers) and (block.source == "ConstantValue" or readers[-1].time >= self.moment)

    def _chain(self, key: int) -> list[Task]:
        """The operators that made a block, from the last that copied it back to the one that computed it."""
        chain: list[Task] = []
        while key in self.trace.blocks and self.trace.blocks[key].source == "Kernel" and key in self.trace.makers:
            chain.append(self.trace.makers[key])
            if chain[-1].operator not in PASSED_ON or key in chain[-1].inputs or not chain[-1].inputs:
                break
            key = chain[-1].inputs[0]
        return chain

    def _place(self, block: Block, kind: str, chain: Sequence[Task]) -> str:
        if block.source == "Weight":
            return _parameter(block)
        if block.source == "ConstantValue":
            readers = self._readers(block.key)
            return self.at[readers[0].time].place if readers else STEP
        if kind == "gradients" and (name := self._updated(block.key)):
            return name
        if kind == "weight copies" and (weight := self.trace.blocks.get(chain[-1].inputs[0])):
            return _parameter(weight)
        return place_of(chain[-1].name) if chain else STEP

    def _updated(self, key: int) -> Optional[str]:
        """The parameter whose gradient this is: the nearest that an operator reads along with what became of it."""
        keys, seen = {key}, {key}
        for _ in range(MAX_DISTANCE):
            tasks = [task for one in sorted(keys) for task in self.trace.users.get(one, ())]
            read = [self.trace.blocks[one] for task in tasks for one in task.inputs if one in self.trace.blocks]
            names = [_parameter(block) for block in read if block.source == "Weight" and "." in block.name]
            if names:
                return names[0]
            keys = {one for task in tasks for one in task.outputs} - seen
            seen |= keys
        return None

    def _curve(self) -> dict[str, tuple[int, ...]]:
        changes = {kind: [0] * (len(self.times) + 1) for kind in LIVE_KINDS}
        for block in self.trace.blocks.values():
            changes[self.kinds[block.key]][self._index(block.key)] += block.num_bytes
            changes[self.kinds[block.key]][self._index(block.end)] -= block.num_bytes
        return {kind: tuple(accumulate(numbers[:-1])) for kind, numbers in changes.items()}


def _runs(task: Task) -> bool:
    """Whether it is a kernel or a collective: not a name for a parameter or constant, a view, or an event."""
    return bool(task.inputs) and "/" in task.name and task.operator not in NO_KERNEL


def _phases(names: Sequence[str]) -> list[str]:
    """The phase of each operator by its scope, in the order in which they ran.

    Scopes of layers that are computed again are marked in the forward pass too: what leads to a gradient is the second
    pass. Scopes that tell nothing go with those before them.
    """
    found: list[Optional[str]] = []
    following = "forward"
    for name in reversed(names):
        phase = _phase(name)
        if phase == "recompute" and following not in ("backward", "recompute"):
            phase = "forward"
        found.append(phase)
        following = phase or ("forward" if "/Send" in name else following)
    latest, phases = "forward", []
    for phase in reversed(found):
        latest = phase or latest
        phases.append(latest)
    return phases


def _phase(name: str) -> Optional[str]:
    """What an operator's scope tells."""
    if name.startswith(GRADIENTS):
        return "backward"
    if name.startswith("recompute_"):
        return "recompute"
    if is_update(name):
        return "optimizer"
    return "forward" if "/decoder-" in name or "/loss-" in name else None


def _parameter(block: Block) -> str:
    """A parameter's name, of its moments and accumulators too."""
    return next((block.name.removeprefix(prefix) for prefix in PREFIXES if block.name.startswith(prefix)), block.name)


def _by_part(tensors: Sequence[Group]) -> dict[str, dict[str, int]]:
    """Bytes by layer and other parts of the model, in the model's order, and by kind."""
    found: Counter[tuple[str, str]] = Counter()
    for tensor in tensors:
        found[_part(tensor.place), tensor.kind] += tensor.num_bytes
    parts = sorted({part for part, _ in found}, key=_position)
    return {part: {kind: found[part, kind] for kind in LIVE_KINDS} for part in parts}


def _part(place: str) -> str:
    part = part_of(place)
    return part if part in PARTS or part.startswith("layers.") else REST


def _position(part: str) -> tuple[int, int]:
    """Where a part stands in the model: the embedding before the layers, everything else behind them."""
    if part.startswith("layers."):
        return 1, int(part.partition(".")[2])
    return (0, 0) if part == PARTS[0] else (2, [*PARTS, REST].index(part))


def _likeness(one: Group) -> tuple[Any, ...]:
    """What tensors of a group have in common."""
    return one.kind, of_any_layer(one.place), one.made_by, one.phase, one.dtype, one.shape, one.last_read


def _grouped(tensors: Sequence[Group]) -> Iterator[Group]:
    alike: dict[tuple, list[Group]] = {}
    for one in tensors:
        alike.setdefault(_likeness(one), []).append(one)
    for (_, place, *_), members in alike.items():
        held = [member.num_kernels for member in members if member.num_kernels is not None]
        yield dataclasses.replace(
            members[0],
            place=place,
            count=len(members),
            num_bytes=sum(member.num_bytes for member in members),
            num_kernels=round(median(held)) if held else None,
            unread_bytes=sum(member.unread_bytes for member in members),
        )
