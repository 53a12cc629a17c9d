"""What each rank of a group gets, by definition of the collective."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.dryrun.collectives import COLLECTIVES, group_of, signature
from mindmodel.dryrun.graph import Primitive

GIVEN = {5: np.array([[1.0, 8.0], [3.0, -4.0]]), 2: np.array([[10.0, 2.0], [30.0, 40.0]])}


def exchange(name: str, operands, **attributes):
    return COLLECTIVES[name](attributes, operands)


def one_tensor_each(name: str, **attributes):
    return exchange(name, {rank: (tensor,) for rank, tensor in GIVEN.items()}, **attributes)


@pytest.mark.parametrize(
    "op, wanted",
    [
        ("sum", [[11.0, 10.0], [33.0, 36.0]]),
        ("max", [[10.0, 8.0], [30.0, 40.0]]),
        ("min", [[1.0, 2.0], [3.0, -4.0]]),
        ("prod", [[10.0, 16.0], [90.0, -160.0]]),
    ],
)
def test_a_reduction_comes_to_all_ranks_or_in_slices_of_the_first_dim(op, wanted):
    np.testing.assert_array_equal(one_tensor_each("AllReduce", op=op), [wanted, wanted])
    np.testing.assert_array_equal(one_tensor_each("ReduceScatter", op=op), [[wanted[0]], [wanted[1]]])


def test_a_sum_of_scalars_stays_a_tensor():
    results = exchange("AllReduce", {0: (np.array(1.0),), 1: (np.array(2.0),)}, op="sum")
    assert [(type(result), result.shape, float(result)) for result in results] == [(np.ndarray, (), 3.0)] * 2


def test_each_rank_has_a_result_of_its_own():
    first, second = one_tensor_each("AllReduce", op="sum")
    first += 1
    assert second[0, 0] == 11.0


def test_a_gather_joins_along_the_first_dim_in_the_order_of_the_group():
    wanted = [*GIVEN[5], *GIVEN[2]]
    np.testing.assert_array_equal(one_tensor_each("AllGather"), [wanted, wanted])


@pytest.mark.parametrize("name", ["AlltoAll", "AllToAll"])
def test_all_to_all_sends_the_nth_block_to_the_nth_rank(name):
    first, second = one_tensor_each(name, split_count=2, split_dim=1, concat_dim=0)
    np.testing.assert_array_equal(first, [[1.0], [3.0], [10.0], [30.0]])
    np.testing.assert_array_equal(second, [[8.0], [-4.0], [2.0], [40.0]])


def test_all_to_all_v_sends_blocks_of_the_sizes_that_each_rank_says():
    given = {0: (np.array([0.0, 1.0, 2.0]), (1, 2), (1, 2)), 1: (np.array([3.0, 4.0, 5.0]), (2, 1), (2, 1))}
    first, second = exchange("AlltoAllV", given, block_size=1)
    assert (first.tolist(), second.tolist()) == ([0.0, 3.0, 4.0], [1.0, 2.0, 5.0])


def test_all_to_all_v_counts_in_units():
    given = {0: (np.arange(4.0), (0, 2), (0, 1)), 1: (np.arange(10.0, 12.0), (1, 0), (2, 0))}
    first, second = exchange("AlltoAllV", given, block_size=2)
    assert (first.tolist(), second.tolist()) == ([10.0, 11.0], [0.0, 1.0, 2.0, 3.0])


def test_a_broadcast_gives_all_ranks_what_the_root_has():
    given = {rank: ((tensor, tensor + 1),) for rank, tensor in GIVEN.items()}
    for result in exchange("Broadcast", given, root_rank=2):
        np.testing.assert_array_equal(result, [GIVEN[2], GIVEN[2] + 1])


@pytest.mark.parametrize("name", ["AllReduce", "AllGather", "ReduceScatter", "AlltoAll"])
def test_different_shapes_in_a_group_are_refused(name):
    given = {0: (np.zeros((2, 2)),), 1: (np.zeros((1, 2)),)}
    with pytest.raises(ValueError, match=r"the ranks give different shapes: \{0: \(2, 2\), 1: \(1, 2\)\}"):
        exchange(name, given, op="sum", split_count=2, split_dim=0, concat_dim=0)


def test_all_to_all_with_other_blocks_than_ranks_is_refused():
    with pytest.raises(ValueError, match="split_count 4 is not the size of the group, 2"):
        one_tensor_each("AlltoAll", split_count=4, split_dim=1, concat_dim=0)


def test_all_to_all_v_refuses_what_a_rank_does_not_expect():
    given = {0: (np.arange(3.0), (1, 2), (1, 1)), 1: (np.arange(3.0), (2, 1), (2, 1))}
    with pytest.raises(ValueError, match=r"rank 0 expects \[1, 1\] units of 1, and gets \[1, 2\] elements"):
        exchange("AlltoAllV", given, block_size=1)


def test_a_group_is_the_ranks_that_the_primitive_names():
    primitive = Primitive(name="AllReduce", attributes={"group": "2-123", "group_rank_ids": (3, 1)})
    assert group_of(primitive, 4) == (3, 1)
    assert group_of(Primitive(name="AllReduce", attributes={"group": "hccl_world_group"}), 3) == (0, 1, 2)


@pytest.mark.parametrize("ranks", [None, (), (0, 4), (1, 1)])
def test_a_group_that_cannot_be_is_refused(ranks):
    primitive = Primitive(name="AllReduce", attributes={"group": "2-123", "group_rank_ids": ranks})
    with pytest.raises(ValueError, match="group 2-123 of ranks .* is not one of 4 ranks"):
        group_of(primitive, 4)


@pytest.mark.parametrize("changed", [{"group": "2-9"}, {"op": "max"}, {"group_rank_ids": (0, 2)}])
def test_ranks_meet_only_where_kind_group_and_operation_are_the_same(changed):
    attributes = {"group": "2-1", "group_rank_ids": (0, 1), "op": "sum", "fusion": 1}
    here = signature(Primitive(name="AllReduce", attributes=attributes))
    assert here == signature(Primitive(name="AllReduce", attributes={**attributes, "fusion": 0}))
    assert here != signature(Primitive(name="AllReduce", attributes={**attributes, **changed}))
    assert here != signature(Primitive(name="ReduceScatter", attributes=attributes))
