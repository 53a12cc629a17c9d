"""A web page of what is alive in a step: live bytes over the kernels of each rank as a plot, and tables of the peak."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import Iterator, Mapping, Sequence

from mindmodel.dryrun.html import document, legend, table
from mindmodel.dryrun.live import PHASES, Columns, Group, Live
from mindmodel.dryrun.live_text import mib, shape_text
from mindmodel.dryrun.memory_trace import LIVE_KINDS
from mindmodel.terminal import data_size

WIDTH, HEIGHT = 1000, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 990, 24, 280
"""Of the plot's area, in the picture's units."""
BAND = 8
"""Height of the stripe that shows the phases, below the plot."""
MAX_TICKS = 6
MIB, GIB = 2**20, 2**30
GROUP_TITLES = (
    "kind", "of", "made by", "in", "dtype", "shape", "last read by", "count", "MiB each", "MiB", "held", "unread",
)
"""Of the table of tensors; the first seven columns hold words."""

KIND_COLOURS = dict(
    zip(LIVE_KINDS, ("#4e79a7", "#59a14f", "#e3b505", "#86bcea", "#f28e2b", "#e15759", "#b07aa1", "#8c8c8c"))
)
PHASE_COLOURS = dict(zip(PHASES, ("#5b9bd5", "#9b59b6", "#d98880", "#7dab6d")))


def page_of(title: str, subtitle: str, ranks: Mapping[int, Live]) -> str:
    """The page.

    Args:
        title, subtitle: what was compiled.
        ranks: what is alive in each rank's step.
    """
    sections = "\n".join(line for rank, live in ranks.items() for line in _section(rank, live))
    return document(title, f"""\
<p>{escape(subtitle)}</p>
<p>What operators read and write, as MindSpore's compiler planned it. Not seen: workspaces of kernels, buffers of
collectives.</p>
{sections}""")


def _section(rank: int, live: Live) -> Iterator[str]:
    peak = f"{data_size(live.peak_bytes)} at the peak, in kernel {live.peak_index + 1} of {len(live.kernels)}"
    yield f"<h2>Rank {rank}</h2><p>{peak}: {escape(str(live.peak_kernel))}.</p>"
    yield legend({kind: colour for kind, colour in KIND_COLOURS.items() if any(live.curve[kind])})
    yield legend({phase: PHASE_COLOURS[phase] for phase in live.by_phase})
    yield from _plot(live)
    phases = ((phase, mib(number)) for phase, number in live.by_phase.items())
    yield "<h3>Most bytes alive in each phase</h3>"
    yield table(("phase", "MiB"), phases, left=1)
    yield "<h3>At the peak, by part of the model and by kind, MiB</h3>"
    rows = [*live.by_part.items(), ("all", live.by_kind)]
    totals = ((part, *(mib(row[kind]) for kind in LIVE_KINDS), mib(sum(row.values()))) for part, row in rows)
    yield table(("part", *LIVE_KINDS, "all"), totals, left=1)
    yield "<h3>Alive at the peak, alike in layers and micro-batches</h3>"
    yield table(GROUP_TITLES, map(_cells, live.groups), left=7)
    yield "<p>held: for so many kernels. unread: MiB that no kernel reads after the peak.</p>"


def _cells(group: Group) -> tuple[str, ...]:
    held = "" if group.num_kernels is None else str(group.num_kernels)
    unread = mib(group.unread_bytes) if group.unread_bytes else ""
    return (
        group.kind, group.place, group.made_by, group.phase, group.dtype, shape_text(group), group.last_read,
        str(group.count), mib(group.num_bytes / group.count), mib(group.num_bytes), held, unread,
    )


def _plot(live: Live) -> Iterator[str]:
    """The stacked curve, with a stripe of phases below, the peak, and a title for each column."""
    columns, scale = live.columns(), _Scale(live)
    yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 20}" role="img" aria-label="live bytes over the kernels of a step">'
    for tick in scale.ticks():
        yield f'<path class="grid" d="M{LEFT} {scale.y(tick)}H{RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{scale.y(tick) + 4}" text-anchor="end">{scale.label(tick)}</text>'
    yield from _areas(columns, scale)
    yield from _phases(live, columns, scale)
    yield from _peak(live, scale)
    yield from _titles(live, columns, scale)
    yield f'<text x="{LEFT}" y="{HEIGHT + 14}">kernels in the order in which they run</text></svg>'


class _Scale:
    """From kernels and bytes to the picture's units."""

    def __init__(self, live: Live):
        self.num_kernels, self.top = len(live.kernels), max(live.peak_bytes, 1)
        self.unit, self.name = (GIB, "GiB") if self.top >= GIB else (MIB, "MiB")

    def x(self, kernel: int) -> float:
        return round(LEFT + (RIGHT - LEFT) * kernel / self.num_kernels, 1)

    def y(self, num_bytes: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * num_bytes / self.top, 1)

    def ticks(self) -> list[float]:
        """Bytes at round numbers of the unit."""
        most = self.top / self.unit
        steps = (digit * 10.0**power for power in range(-6, 6) for digit in (1, 2, 5))
        step = next(step for step in steps if most / step <= MAX_TICKS)
        return [number * step * self.unit for number in range(int(most / step) + 1)]

    def label(self, num_bytes: float) -> str:
        return f"{num_bytes / self.unit:g} {self.name}"


def _areas(columns: Columns, scale: _Scale) -> Iterator[str]:
    """One area a kind, on top of those before it."""
    edges = [scale.x(kernel) for kernel in _edges(columns, scale)]
    below = [0] * len(columns.kernels)
    for kind, numbers in columns.by_kind.items():
        above = [low + number for low, number in zip(below, numbers)]
        if any(numbers):
            upper = _steps(edges, [scale.y(number) for number in above])
            lower = _steps(edges[::-1], [scale.y(number) for number in below[::-1]])
            shape = f"M{edges[0]} {BOTTOM}{upper}{lower}Z"
            yield f'<path fill="{KIND_COLOURS[kind]}" d="{shape}"><title>{kind}</title></path>'
        below = above


def _edges(columns: Columns, scale: _Scale) -> list[int]:
    """The first kernel of each column, and the end of the last, which may be narrower."""
    return [*range(0, scale.num_kernels, columns.width), scale.num_kernels]


def _steps(edges: Sequence[float], heights: Sequence[float]) -> str:
    """A line over columns, from edge to edge; equal heights in one stroke."""
    path, column = "", 0
    for height, run in groupby(heights):
        column += len(list(run))
        path += f"V{height:g}H{edges[column]:g}"
    return path


def _phases(live: Live, columns: Columns, scale: _Scale) -> Iterator[str]:
    """A stripe for each run of columns of a phase."""
    edges, column = _edges(columns, scale), 0
    for phase, run in groupby(live.kernels[kernel].phase for kernel in columns.kernels):
        left = scale.x(edges[column])
        column += len(list(run))
        width = round(scale.x(edges[column]) - left, 1)
        yield f'<rect x="{left}" y="{BOTTOM + 3}" width="{width}" height="{BAND}" fill="{PHASE_COLOURS[phase]}"/>'


def _peak(live: Live, scale: _Scale) -> Iterator[str]:
    x = scale.x(live.peak_index)
    anchor = "start" if x < (LEFT + RIGHT) / 2 else "end"
    yield f'<path class="peak" d="M{x} {TOP - 8}V{BOTTOM}"/>'
    yield f'<text x="{x}" y="{TOP - 12}" text-anchor="{anchor}">peak: {escape(str(live.peak_kernel))}</text>'


def _titles(live: Live, columns: Columns, scale: _Scale) -> Iterator[str]:
    """What a pointer shows over each column."""
    edges = _edges(columns, scale)
    for number, kernel in enumerate(columns.kernels):
        left, right = scale.x(edges[number]), scale.x(edges[number + 1])
        alive = {kind: numbers[number] / scale.unit for kind, numbers in columns.by_kind.items() if numbers[number]}
        parts = "\n".join(f"{kind} {size:.2f}" for kind, size in alive.items())
        text = f"{kernel + 1}: {live.kernels[kernel]}\n{sum(alive.values()):.2f} {scale.name}\n{parts}"
        yield (f'<rect class="hit" x="{left}" y="{TOP}" width="{round(right - left, 1)}" height="{BOTTOM - TOP}">'
               f"<title>{escape(text)}</title></rect>")
