"""What memory a profiled step holds: bytes over its kernels, and the tensors that are alive at the peak."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Iterator, Mapping

from mindmodel.debug.graph.summary import num_bytes_of
from mindmodel.debug.profile.kernel_graph import Value
from mindmodel.debug.profile.places import PHASES, Placed
from mindmodel.debug.profile.recording import Recording
from mindmodel.dryrun.scopes import of_any_layer

ALIGNMENT = 512
"""Bytes; MindSpore's pool hands out multiples."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Tensors alive at the peak, alike in all layers. `last_read`: the operator that reads them last."""

    place: str
    operator: str
    phase: str
    type: str
    count: int
    num_bytes: int
    last_read: str


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Of one step.

    Attributes:
        peak_bytes: most that MindSpore's pool gave out, as it recorded; without weights and moments.
        fixed_bytes: of these, what is there all along: inputs and constants.
        unexplained_bytes: of these, what the graph's tensors and that do not account for.
        peak_kernel: what ran then, and its number in the order of a step.
        parameter_bytes, process_bytes: as of Recording.
        by_phase: most bytes in each phase.
        curve: bytes while each kernel runs.
        held: at the peak, largest first.
    """

    peak_bytes: int
    fixed_bytes: int
    unexplained_bytes: int
    peak_index: int
    peak_kernel: str
    parameter_bytes: Mapping[str, int]
    process_bytes: int
    by_phase: Mapping[str, int]
    curve: tuple[int, ...]
    held: tuple[Held, ...]


def memory_of(recording: Recording, placed: Mapping[str, Placed]) -> MemoryUse:
    """Of the last step that was recorded.

    Args:
        placed: the kernels by scope.
    """
    return _Memory(recording, placed).use()


class _Memory:
    """The tensors of the graph over the kernels of a step, beside what MindSpore's pool recorded."""

    def __init__(self, recording: Recording, placed: Mapping[str, Placed]):
        self.recording, self.graph = recording, recording.graph
        self.placed = list(placed.values())
        self.step = recording.steps[-1]
        self.number = {one.kernel.key: number for number, one in enumerate(self.placed)}

    def use(self) -> MemoryUse:
        measured, tensors = self._measured(), self._of_tensors()
        differences = sorted(a - b for a, b in zip(measured, tensors))
        fixed = max(0, differences[len(differences) // 2])
        peak = max(range(len(measured)), key=measured.__getitem__)
        by_phase: dict[str, int] = {}
        for one, number in zip(self.placed, measured):
            by_phase[one.phase] = max(number, by_phase.get(one.phase, 0))
        return MemoryUse(
            peak_bytes=measured[peak],
            fixed_bytes=fixed,
            unexplained_bytes=measured[peak] - fixed - tensors[peak],
            peak_index=peak,
            peak_kernel=str(self.placed[peak]),
            parameter_bytes=self.recording.parameter_bytes,
            process_bytes=self.recording.process_bytes,
            by_phase={phase: by_phase[phase] for phase in PHASES if phase in by_phase},
            curve=tuple(measured),
            held=tuple(self._held(peak)),
        )

    def _measured(self) -> list[int]:
        """Bytes of the pool while each kernel of the last step runs."""
        times = [time for time, _ in self.step.memory]
        before = [bisect_right(times, event.begin_ns) for event in self.step.events]
        return [self.step.memory[number - 1][1] if number else 0 for number in before]

    def _last_read(self, value: Value) -> int:
        """Number of the kernel until which a tensor is held."""
        if value in self.graph.outputs:
            return len(self.placed) - 1
        readers = [self.number[key] for key in self.graph.readers.get(value, ())]
        return max(readers, default=self.number[value.kernel])

    def _tensors(self) -> Iterator[tuple[Placed, Value, int]]:
        """Each tensor with its bytes in the pool."""
        for one in self.placed:
            for index, kind in enumerate(one.kernel.results):
                num_bytes = -(-num_bytes_of(kind) // ALIGNMENT) * ALIGNMENT
                yield one, Value(kernel=one.kernel.key, index=index), num_bytes

    def _of_tensors(self) -> list[int]:
        """Bytes of the graph's tensors while each kernel runs."""
        changes = [0] * (len(self.placed) + 1)
        for one, value, num_bytes in self._tensors():
            changes[self.number[one.kernel.key]] += num_bytes
            changes[self._last_read(value) + 1] -= num_bytes
        return list(accumulate(changes[:-1]))

    def _held(self, moment: int) -> list[Held]:
        alike: Counter[tuple[str, ...]] = Counter()
        sizes: dict[tuple[str, ...], int] = {}
        for one, value, num_bytes in self._tensors():
            last = self._last_read(value)
            if self.number[one.kernel.key] <= moment <= last:
                place = of_any_layer(one.place)
                kind, reader = one.kernel.results[value.index], self.placed[last]
                key = place, one.operator, one.phase, str(kind), reader.as_reader
                alike[key] += 1
                sizes[key] = num_bytes
        held = [
            Held(place=place, operator=operator, phase=phase, type=kind, count=count,
                 num_bytes=count * sizes[place, operator, phase, kind, reader], last_read=reader)
            for (place, operator, phase, kind, reader), count in alike.items()
        ]
        return sorted(held, key=lambda row: -row.num_bytes)
