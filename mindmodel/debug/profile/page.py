"""A web page of a profiled step: bars of its time, and live bytes over its kernels."""

from __future__ import annotations

from html import escape
from typing import Iterator, Mapping, Sequence

from mindmodel.debug.profile.memory import MemoryUse
from mindmodel.debug.profile.places import PHASES
from mindmodel.debug.profile.step_profile import DATA, REST, StepProfile
from mindmodel.dryrun.html import document, legend, table
from mindmodel.dryrun.live_text import mib

MAX_ROWS = 60
WIDTH, HEIGHT, MAX_COLUMNS = 1000, 220, 600
"""Of the curve of memory."""
PRODUCT_TITLES = ("Cell", "operator", "factors", "count", "ms", "GFLOP", "GFLOP/s", "of peak")
CELL_TITLES = ("Cell", "operator", "phase", "line", "count", "ms")
HELD_TITLES = ("Cell", "made by", "in", "type", "last read by", "count", "MiB")
COLOURS = {
    DATA: "#86bcea", "forward": "#5b9bd5", "loss": "#e3b505", "backward": "#d98880", "optimizer": "#7dab6d",
    REST: "#8c8c8c",
}
BARS = """\
.bar { display: flex; height: 1.1em; width: 22rem; } .bar i { display: block; height: 100%; }
.whole { width: 100%; height: 1.8em; } td.bars { min-width: 22rem; }
"""


def page_of(title: str, profile: StepProfile) -> str:
    """The page."""
    return document(title, "\n".join(_sections(profile)), BARS)


def _sections(profile: StepProfile) -> Iterator[str]:
    yield (f"<p>{_ms(profile.step_s)} ms a step, the mean of {profile.num_steps} ({_ms(profile.fastest_s)} to "
           f"{_ms(profile.slowest_s)}); median {_ms(profile.median_s)}, and {_ms(profile.plain_s)} of steps that are "
           f"not profiled. {profile.num_kernels} kernels, {profile.num_fused} of them fused; "
           f"{escape(profile.kernels)}, {profile.threads} threads, MindSpore {escape(profile.mindspore)}.</p>")
    yield legend(COLOURS)
    yield f'<div class="bar whole">{_pieces(profile.phases, profile.step_s)}</div>'
    rows = [([phase, _ms(s), _share(s / profile.step_s)], {phase: s}) for phase, s in profile.phases.items()]
    yield _table("Phases", ("phase", "ms", "share"), rows, profile.step_s, left=1)
    longest = max((sum(phases.values()) for phases in profile.parts.values()), default=1.0)
    parts = [([part, *(_ms(phases[phase]) for phase in PHASES), _ms(sum(phases.values()))], phases)
             for part, phases in profile.parts.items()]
    yield _table("Parts of the model", ("part", *PHASES, "ms"), parts, longest, left=1)
    yield from _tables_of_kernels(profile)
    yield from _memory(profile.memory)


def _tables_of_kernels(profile: StepProfile) -> Iterator[str]:
    most = max((seconds for _, seconds in profile.operators.values()), default=1.0)
    operators = [([name, str(count), _ms(s), _share(s / profile.step_s)], {"forward": s})
                 for name, (count, s) in profile.operators.items()]
    yield _table("Operators", ("operator", "count", "ms", "share"), operators[:MAX_ROWS], most, left=1)
    fastest = max((row.flop_s for row in profile.products), default=1.0)
    products = [
        ([row.place, row.operator, row.shapes, str(row.count), _ms(row.seconds), f"{row.flop / 1e9:.3f}",
          f"{row.flop_s / 1e9:.1f}", _share(row.flop_s / profile.peak_flops)], {row.phase: row.flop_s})
        for row in profile.products
    ]
    peak = f"Matrix products; {profile.peak_flops / 1e9:.0f} GFLOP/s are the peak, {profile.peak_name}"
    yield _table(peak, PRODUCT_TITLES, products[:MAX_ROWS], fastest, left=3)
    longest = max((row.seconds for row in profile.rows), default=1.0)
    cells = [([row.place, row.operator, row.phase, row.where, str(row.count), _ms(row.seconds)],
              {row.phase: row.seconds}) for row in profile.rows]
    yield _table("Kernels, alike in all layers", CELL_TITLES, cells[:MAX_ROWS], longest, left=4)


def _memory(memory: MemoryUse) -> Iterator[str]:
    parameters = ", ".join(f"{name} {mib(number)}" for name, number in memory.parameter_bytes.items())
    yield (f"<h3>Memory</h3><p>{mib(memory.peak_bytes)} MiB of tensors at the peak, in kernel {memory.peak_index + 1} "
           f"of {len(memory.curve)}: {escape(memory.peak_kernel)}. {mib(memory.fixed_bytes)} MiB of it are inputs and "
           f"constants. Beside that in MiB: {parameters}.</p>")
    yield _curve(memory)
    largest = max((row.num_bytes for row in memory.held), default=1)
    rows = [([row.place, row.operator, row.phase, row.type, row.last_read, str(row.count), mib(row.num_bytes)],
             {row.phase: float(row.num_bytes)}) for row in memory.held]
    yield _table("Alive at the peak", HELD_TITLES, rows[:MAX_ROWS], largest, left=5)


def _curve(memory: MemoryUse) -> str:
    """Bytes while each kernel runs; of many in a row the most."""
    width = -(-len(memory.curve) // MAX_COLUMNS)
    columns = [max(memory.curve[start:start + width]) for start in range(0, len(memory.curve), width)]
    path = "".join(f"V{round(HEIGHT * (1 - number / max(memory.peak_bytes, 1)), 1):g}"
                   f"H{round(WIDTH * (column + 1) / len(columns), 1):g}" for column, number in enumerate(columns))
    x = round(WIDTH * memory.peak_index / len(memory.curve), 1)
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 16}" role="img" aria-label="live bytes over the kernels of a step">'
            f'<path fill="#4e79a7" d="M0 {HEIGHT}{path}V{HEIGHT}Z"/><path class="peak" d="M{x:g} 0V{HEIGHT}"/>'
            f'<text x="0" y="{HEIGHT + 13}">kernels in the order in which they run</text></svg>')


def _table(
    heading: str,
    titles: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Mapping[str, float]]],
    longest: float,
    left: int,
) -> str:
    """A table whose last column holds bars; the first columns hold words, and the others numbers."""
    bars = [f'<td class="bars"><div class="bar">{_pieces(lengths, longest)}</div></td>' for _, lengths in rows]
    return f"<h3>{escape(heading)}</h3>{table(titles, [cells for cells, _ in rows], left, bars)}"


def _pieces(lengths: Mapping[str, float], whole: float) -> str:
    """Coloured pieces of a bar, as shares of the whole."""
    return "".join(
        f'<i style="width:{100 * length / whole:.2f}%;background:{COLOURS[phase]}" title="{escape(phase)}"></i>'
        for phase, length in lengths.items() if length > 0
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"


def _share(number: float) -> str:
    return f"{100 * number:.1f}%"
