"""What the ranks of a layout say to each other is what one function of layers, sizes and degrees says.

It was written on the layouts that are executed; the other sizes here are others in depth and in width.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from mindmodel.dryrun.collectives import group_of
from mindmodel.dryrun.graph import TensorType
from mindmodel.dryrun.rank import Rank
from mindmodel.fleet.collectives import CollectiveTotal, collectives_of

SIZES = [
    "wide gradients", "deep everything", "wide parameters", "deep tied", "wide copied heads", "deep stages",
    "wide summed in compute", "deep tied summed in compute", "wide tied",
]
VOCAB_SIZE = 64
WITHOUT_ALL_TO_ALL = {"AllReduce", "AllGather", "ReduceScatter", "Send", "Receive"}


def totals(calls, mesh):
    """Of a log, in the order of collectives_of."""
    found = defaultdict(lambda: [0, 0])
    for call in calls:
        total = found[call.kind, mesh.axes_of(call.group), call.dtype]
        total[0] += 1
        total[1] += call.num_bytes
    return [
        CollectiveTotal(kind=kind, axes=axes, count=count, bytes=num_bytes, dtype=dtype)
        for (kind, axes, dtype), (count, num_bytes) in sorted(found.items())
    ]


def test_the_ranks_of_a_layout_say_what_the_function_says(partition):
    for rank in range(partition.mesh.num_devices):
        calls = [call for call in partition.execution.log if call.rank == rank]
        assert totals(calls, partition.mesh) == collectives_of(partition.recipe, rank)


def zeros(declared):
    if isinstance(declared, TensorType):
        whole_numbers = np.issubdtype(declared.dtype, np.integer)
        return np.zeros(declared.shape, declared.dtype if whole_numbers else np.float64)
    return tuple(map(zeros, declared))


def log_of(compiled, num_devices):
    """One rank's collectives when all that it is told is zero."""
    recipe, number, calls = compiled.job.recipe, compiled.job.rank, []
    batch = np.zeros((recipe.sequences_per_step, recipe.data.seq_len), np.int32)
    execution = Rank(number, compiled.graph(), compiled.slices(), np.dtype(np.float64)).run([batch, batch])
    answer = None
    with np.errstate(all="ignore"):
        while True:
            try:
                waiting = execution.send(answer)
            except StopIteration:
                return calls
            answer = zeros(waiting.node.type)
            attributes, given = waiting.primitive.attributes, waiting.operands[0] if waiting.operands else answer
            if waiting.primitive.name == "Receive":
                calls += waiting.record((attributes["src_global_rank"], number), [answer])
            elif waiting.primitive.name == "Send":
                calls += waiting.record((number, attributes["dst_global_rank"]), [given])
            else:
                calls += waiting.record(group_of(waiting.primitive, num_devices), [given])


@pytest.mark.parametrize("layout", SIZES)
def test_so_do_those_of_other_depths_and_sizes(partition):
    for compiled in partition.ranks:
        calls = log_of(compiled, partition.mesh.num_devices)
        assert totals(calls, partition.mesh) == collectives_of(partition.recipe, compiled.job.rank)
        assert {call.kind for call in calls} <= WITHOUT_ALL_TO_ALL


def test_no_layout_moves_tensors_from_all_to_all(partition):
    assert {call.kind for call in partition.execution.log} <= WITHOUT_ALL_TO_ALL


IN_FLOAT32 = ("MicroStep", "embedding-EmbeddingAscend", "totals", "head_loss")
"""Gradients, what is gathered from the table, sums over the model, and the loss: parts of scopes."""


@pytest.mark.parametrize("layout", ["wide parameters"])
def test_bfloat16_is_on_the_wire_but_for_gradients_the_embedding_and_the_loss(partition):
    calls = log_of(partition.ranks[0], partition.mesh.num_devices)
    products = [call for call in calls if "linear-" in call.scope and "MicroStep" not in call.scope]
    exact = [call for call in calls if call not in products and any(word in call.scope for word in IN_FLOAT32)]
    weights = [call for call in calls if call not in products and call not in exact]
    assert {call.dtype for call in products} == {"bfloat16"}
    assert {call.dtype for call in exact} == {"float32"}
    assert {call.kind for call in weights} == {"AllGather"}
    tables = [call.shape for call in weights if call.dtype == "float32"]
    assert tables == [(VOCAB_SIZE // 4, 64)] * partition.recipe.parallel.micro_batches
