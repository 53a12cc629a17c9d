"""What the ranks of a layout say to each other is what one function of layers, sizes and degrees says.

It was written on the layouts that are executed; the other sizes here are others in depth and in width.
"""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.dryrun.collectives import group_of
from mindmodel.dryrun.graph import TensorType
from mindmodel.dryrun.rank import Rank
from mindmodel.fleet.collectives import CollectiveTotal, added_up, collectives_of

SIZES = [
    "wide gradients", "deep everything", "wide parameters", "deep tied", "wide copied heads", "deep stages",
    "wide summed in compute", "deep tied summed in compute", "wide tied",
    "wide tokens kept",
]
SEQ_LEN = 16
WITHOUT_ALL_TO_ALL = {"AllReduce", "AllGather", "ReduceScatter", "Send", "Receive"}


def totals(calls, mesh):
    """Of a log, in the order of collectives_of."""
    found = added_up(
        CollectiveTotal(
            kind=call.kind, axes=mesh.axes_of(call.group), count=1, bytes=call.num_bytes, dtype=call.dtype
        )
        for call in calls
    )
    return sorted(found, key=lambda total: (total.kind, total.axes, total.dtype))


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


def is_exact(call):
    """Whether it adds up gradients of weights, squares of them, or one number a token for the loss."""
    return "MicroStep" in call.scope or call.kind == "AllReduce"


@pytest.mark.parametrize("layout", ["wide parameters"])
def test_bfloat16_is_on_the_wire_but_for_gradients_and_rows_of_the_loss(partition):
    calls = log_of(partition.ranks[0], partition.mesh.num_devices)
    assert {call.dtype for call in calls if is_exact(call)} == {"float32"}
    assert {call.dtype for call in calls if not is_exact(call)} == {"bfloat16"}
    tokens = partition.recipe.sequences_per_rank * SEQ_LEN // partition.recipe.parallel.micro_batches
    assert max(call.num_bytes for call in calls if call.kind == "AllReduce") == 4 * tokens


@pytest.mark.parametrize("layout", ["wide summed in compute"])
def test_gradients_of_matrices_too_where_a_recipe_says_so(partition):
    calls = log_of(partition.ranks[0], partition.mesh.num_devices)
    scattered = [call for call in calls if call.kind == "ReduceScatter"]
    assert {call.dtype for call in scattered if "norm" in call.scope} == {"float32"}
    assert {call.dtype for call in scattered if "norm" not in call.scope} == {"bfloat16"}
