"""A layout as a side of a comparison (mindmodel/debug/layout_side.py); in this room layouts are compiled once for all."""

from __future__ import annotations

import numpy as np
import pytest
from graph_edits import is_gradient_sum, nodes_of, without

from mindmodel.data.loader import Batch
from mindmodel.debug import layout_side
from mindmodel.debug.inputs import Inputs
from mindmodel.debug.layout_side import trace_graphs, trace_layout
from mindmodel.dryrun.prove import LR, batches_of, execute_graphs, one_step, reference
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.errors import TraceError

RTOL = 1e-6  # of the largest entry: what float32 keeps
LAYOUTS = ["dp2 tp2", "pp2 tied", "dp4 states", "cp2 tp2 sequence_parallel", "everything"]


def inputs_of(partition):
    batches = batches_of(partition.recipe)
    return Inputs(batch=Batch(ids=batches.ids[0], labels=batches.labels[0]), lr=LR)


def traced(partition, graphs=None, **options):
    return trace_graphs(partition.recipe, graphs or partition.graphs, partition.slices, inputs_of(partition), **options)


def alone(partition):
    """The same step on one device."""
    return trace_graphs(
        reference(partition.recipe), [partition.one.graph()], [partition.one.slices()], inputs_of(partition)
    )


def apart(one, other, kind):
    """Largest difference of each tensor over its largest entry."""
    pairs = {name: (one.tensors[kind][name], array) for name, array in other.tensors[kind].items()}
    return {name: float(np.abs(a - b).max() / np.abs(b).max()) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_and_weights_are_those_of_one_device(partition):
    found, wanted = traced(partition), alone(partition)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-12)
    for kind in ("weight_grad", "weight"):
        assert found.tensors[kind].keys() == partition.before.keys()
        assert max(apart(found, wanted, kind).values()) < RTOL
