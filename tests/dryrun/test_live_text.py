"""What is alive at the peak, as lines for a terminal."""

from __future__ import annotations

import dataclasses

import pytest

from mindmodel.dryrun.live_text import MAX_GROUPS, live_lines
from step_trace import live_in

MIB = 2**20


@pytest.fixture
def live(tmp_path):
    return live_in(tmp_path)


def enlarged(live):
    """The same with a MiB for each byte."""
    groups = tuple(
        dataclasses.replace(group, num_bytes=group.num_bytes * MIB, unread_bytes=group.unread_bytes * MIB)
        for group in live.groups
    )
    parts = {part: {kind: number * MIB for kind, number in kinds.items()} for part, kinds in live.by_part.items()}
    kinds = {kind: number * MIB for kind, number in live.by_kind.items()}
    curve = {kind: tuple(number * MIB for number in numbers) for kind, numbers in live.curve.items()}
    return dataclasses.replace(
        live, peak_bytes=live.peak_bytes * MIB, groups=groups, by_part=parts, by_kind=kinds, curve=curve
    )


def test_the_peak_is_told_with_its_kernel_kinds_phases_and_parts(live):
    lines = list(live_lines(3, enlarged(live)))
    assert lines[:5] == [
        "rank 3: 756 MiB alive at the peak, in kernel 9 of 16: Mul of loss, backward",
        "  in MiB",
        "  by kind   weights 200.0, optimizer 160.0, constants 16.0, weight copies 180.0, activations 80.0, "
        "logits 120.0",
        "  by part   embedding 7.0, layers.0 to 1 310.0 each, loss 120.0, rest 9.0",
        "  by phase  at most forward 716.0, backward 756.0, optimizer 496.0",
    ]


def test_a_group_tells_what_it_is_who_made_it_how_long_it_is_held_and_who_reads_it(live):
    text = "\n".join(live_lines(0, enlarged(live)))
    for words in (
        "180.0 =   2 x    90.0  weight copies layers.*.mlp.down.weight       bf16 10 x 6, Cast > AllGather in forward",
        "40.0 =   1 x    40.0  logits        loss                           fp32 4 x 10, Exp in forward, held for 2 "
        "kernels, last read by Mul, backward",
        "last read by MatMul, forward, 40.0 not read again",
        "49.0 MiB of all are not read again in the step",
    ):
        assert words in text


def test_weights_and_the_optimizers_state_are_not_listed(live):
    lines = [line for line in live_lines(0, live) if " x " in line]
    assert lines and not any(" weights " in line or " optimizer " in line.partition(",")[0] for line in lines)


def test_only_the_largest_are_listed(live):
    (logits, *_) = [group for group in live.groups if group.kind == "logits"]
    lines = list(live_lines(0, dataclasses.replace(live, groups=(logits,) * (MAX_GROUPS + 5))))
    assert sum(" = " in line for line in lines) == MAX_GROUPS
