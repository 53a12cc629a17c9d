"""What a launcher hears of the others: of signs of life it takes what can be one of the node's that sent it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindmodel.parallel.launch import Launch
from mindmodel.parallel.nodes import Nodes
from mindmodel.supervise.link import Message
from mindmodel.supervise.peers import Peers
from runs import make_recipe


class Said:
    """In place of a link: what the others have said."""

    def __init__(self, *messages):
        self.messages, self.channels = messages, {1: None}

    def receive(self):
        return self.messages


def signs_of(*values) -> list[tuple[int, str, int]]:
    """That node 0 of two, with two ranks each, takes from node 1."""
    nodes = Nodes(count=2, master="127.0.0.1", port=9999)
    recipe = make_recipe(Path("run"))
    launch = Launch(recipe=recipe, nodes=nodes, workers=4, command=(), environment={}, logs=Path("logs"))
    peers = Peers(launch, Said(Message(node=1, kind="signs", value=list(values))))
    peers.hear(stopping=False)
    return [(sign.rank, sign.phase, sign.step) for sign in peers.signs()]


def test_signs_of_the_nodes_own_ranks_are_taken():
    signs = [[2, "step", 5, 1, False], [3, "saving", 4, 0.5, True]]
    assert signs_of(*signs) == [(2, "step", 5), (3, "saving", 4)]


@pytest.mark.parametrize(
    "value",
    [[1, "step", 5, 1.0, False], [4, "step", 5, 1.0, False], [2, 3, 5, 1.0, False], [2, "step", 5], "step", None],
)
def test_what_cannot_be_one_is_not(value):
    assert signs_of(value) == []
