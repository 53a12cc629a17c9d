"""Every layout computes what one device computes: from the graphs that MindSpore's compiler cut, for all ranks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mindmodel.dryrun.compile import Compiled
from mindmodel.dryrun.prove import (
    LR,
    NUM_STEPS,
    TOLERANCE,
    Execution,
    axes_by_name,
    batches_of,
    compare,
    jobs_of,
    prove,
    reference,
)
from mindmodel.errors import LayoutError


def test_a_layout_computes_what_one_device_computes(partition):
    proof = partition.proof()
    assert proof.holds, proof
    assert (proof.loss, proof.gradient, proof.weight, proof.copies) <= (TOLERANCE,) * 4


def test_what_is_compared_is_worth_comparing(partition):
    """Losses of three different batches, a gradient for every weight, and weights that have moved."""
    alone, names = partition.alone, partition.before.keys()
    assert len({step[0] for step in alone.losses}) == NUM_STEPS
    assert {name for rank in partition.execution.moments for name in rank} == names
    for name in names:
        assert np.abs(alone.moments[0][name]).max() > 1e-6, name
        assert np.abs(alone.weights[0][name] - partition.before[name]).max() > LR / 100, name
