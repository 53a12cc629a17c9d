"""What is alive at the peak of a step, in lines for a terminal."""

from __future__ import annotations

from itertools import groupby
from typing import Iterator, Mapping

from mindmodel.dryrun.live import Group, Live
from mindmodel.terminal import data_size

MAX_GROUPS = 24
STATE = ("weights", "optimizer")
"""Kinds whose tensors are not listed: they are what is trained."""


def live_lines(rank: int, live: Live) -> Iterator[str]:
    """The peak by kind, by phase and by part of the model, and the largest groups of tensors."""
    place = f"kernel {live.peak_index + 1} of {len(live.kernels)}: {live.peak_kernel}"
    yield f"rank {rank}: {data_size(live.peak_bytes)} alive at the peak, in {place}"
    yield "  in MiB"
    yield f"  by kind   {_listed(live.by_kind)}"
    yield f"  by part   {', '.join(_parts(live.by_part))}"
    yield f"  by phase  at most {_listed(live.by_phase)}"
    listed = [group for group in live.groups if group.kind not in STATE]
    yield f"  the largest of {len(listed)} groups of tensors beside weights and the optimizer's state, MiB"
    for group in listed[:MAX_GROUPS]:
        yield f"  {_group_line(group)}"
    unread = sum(group.unread_bytes for group in live.groups)
    yield f"  {mib(unread)} MiB of all are not read again in the step"


def mib(number: float) -> str:
    """MiB, as tables show them."""
    return f"{number / 2**20:,.1f}"


def shape_text(group: Group) -> str:
    """Dims of the group's tensors; of a single number it is empty."""
    return " x ".join(map(str, group.shape))


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {mib(number)}" for name, number in numbers.items() if number)


def _parts(by_part: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Parts of the model with their bytes; layers in a row that hold as much are one."""
    totals = [(part, sum(kinds.values())) for part, kinds in by_part.items() if any(kinds.values())]
    for (_, number), run in groupby(totals, key=lambda pair: (pair[0].startswith("layers."), mib(pair[1]))):
        parts = [part for part, _ in run]
        if len(parts) > 1 and parts[0].startswith("layers."):
            yield f"{parts[0]} to {parts[-1].partition('.')[2]} {number} each"
        else:
            yield from (f"{part} {number}" for part in parts)


def _group_line(group: Group) -> str:
    sizes = f"{mib(group.num_bytes):>9} = {group.count:>3} x {mib(group.num_bytes / group.count):>7}"
    what = f"{group.kind:<13} {group.place:<30} {group.dtype} {shape_text(group)}"
    held = "" if group.num_kernels is None else f", held for {group.num_kernels} kernels"
    made = f", {group.made_by} in {group.phase}" if group.made_by else ""
    read = f", last read by {group.last_read}" if group.last_read else ""
    unread = f", {mib(group.unread_bytes)} not read again" if group.unread_bytes else ""
    return f"{sizes}  {what}{made}{held}{read}{unread}"
