"""The nodes that a command line names."""

from __future__ import annotations

import pytest

from mindmodel.errors import LaunchError
from mindmodel.parallel.nodes import DEFAULT_PORT, Nodes, nodes_of


def test_one_node_is_its_own_master_and_may_take_any_port():
    assert nodes_of(1, None, None) == Nodes(count=1, rank=0, master="127.0.0.1", port=None)


def test_several_nodes_meet_at_the_master():
    assert nodes_of(4, 2, "head:9000") == Nodes(count=4, rank=2, master="head", port=9000)
    assert nodes_of(4, 2, "10.0.0.1").port == DEFAULT_PORT


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, None, None), "--nodes: 0 is no number of machines"),
        ((2, None, "head"), "--nodes 2: every node must know its own number"),
        ((2, 0, None), "where node 0 is"),
        ((2, 2, "head"), "--node-rank: 2 is none of the 2 nodes. Use 0 to 1"),
        ((2, 0, "head:99"), "--master: 'head:99' is not HOST or HOST:PORT"),
        ((2, 0, ":9000"), "is not HOST or HOST:PORT"),
    ],
)
def test_what_names_no_nodes_is_refused(arguments, message):
    with pytest.raises(LaunchError, match=message):
        nodes_of(*arguments)
