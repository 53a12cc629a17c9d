"""How launchers find one another, and what they say when they do not; without processes."""

from __future__ import annotations

import resource
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from mindmodel.errors import DataError, LaunchError
from mindmodel.parallel.json_lines import decode, encode
from mindmodel.parallel.launch import Launch
from mindmodel.parallel.nodes import Nodes
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.supervise.link import Hub, Link, Message, Spoke, link_of
from runs import make_recipe

RECIPE = make_recipe(Path("runs/tests"))


@pytest.fixture
def launch(free_port):
    """Function: that of a node of two."""

    def of_node(rank: int, count: int = 2) -> Launch:
        nodes = Nodes(count=count, rank=rank, master="127.0.0.1", port=free_port)
        return Launch(recipe=RECIPE, nodes=nodes, workers=count, command=(), environment={}, logs=Path("logs"))

    return of_node


@pytest.fixture
def node_0(free_port):
    """A listening socket where node 0's launcher should be."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", free_port + 1))
        listening.listen()
        yield listening


def silent(_text):
    pass


def nothing():
    """To prepare."""


def say_hello(port, hello) -> bytes:
    """What node 0 answers."""
    with socket.create_connection(("127.0.0.1", port + 1)) as connection:
        connection.sendall(encode({"hello": hello}))
        connection.settimeout(5)
        return connection.makefile("rb").readline()


def test_one_node_needs_no_link(launch):
    link = link_of(launch(0, count=1))
    assert type(link) is Link
    link.meet(0, silent, nothing)
    assert link.receive() == []


def test_messages_go_both_ways_and_the_end_is_told_once(launch):
    hub, spoke = link_of(launch(0)), link_of(launch(1))
    assert isinstance(hub, Hub) and isinstance(spoke, Spoke)
    meeting = threading.Thread(target=hub.meet, args=(5, silent, nothing))
    meeting.start()
    spoke.meet(5, silent, nothing)
    meeting.join()
    spoke.send("stop", "SIGTERM")
    hub.send("hang", 1, node=1)
    hub.send("hang", 2, node=2)
    assert wait_for(hub) == [Message(node=1, kind="stop", value="SIGTERM")]
    assert wait_for(spoke) == [Message(node=0, kind="hang", value=1)]
    spoke.close()
    assert wait_for(hub) == [Message(node=1, kind="lost")]
    assert hub.receive() == []
    hub.close()


def wait_for(link):
    while not (messages := link.receive()):
        pass
    return messages


def test_a_node_0_that_leaves_before_the_start_is_told(launch, node_0):
    threading.Thread(target=lambda: node_0.accept()[0].close()).start()
    with pytest.raises(LaunchError, match="has ended before all nodes were there. What it says tells why"):
        Spoke(launch(1)).meet(5, silent, nothing)


def test_others_that_do_not_come_end_the_waiting_of_a_node(launch, node_0, monkeypatch):
    monkeypatch.setattr("mindmodel.supervise.link.CONNECT_S", 0.3)
    with pytest.raises(LaunchError, match="the other nodes did not come within the time limit. What node 0 says"):
        Spoke(launch(1)).meet(0.2, silent, nothing)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"recipe": "nonsense"}, "has another recipe than node 0: it cannot be read by this version of mindmodel"),
        ({"recipe": {"name": "tests", "nothing": {"we": "know"}}}, "it cannot be read by this version"),
        ({"recipe": {**recipe_to_dict(RECIPE), "name": "other"}}, "than node 0: its name"),
        ({"nodes": 3}, "has other nodes than --nodes 2"),
        ({"node": "one"}, "has other nodes than --nodes 2"),
        ({"node": True}, "has other nodes than --nodes 2"),
        ({"host": "\x1b[2J", "recipe": 1}, r"node 1 \(\ufffd\[2J\) has another recipe than node 0: it cannot be read"),
        ({"node": 2}, "two nodes say --node-rank 2|needs a number of its own"),
    ],
)
def test_a_node_that_does_not_fit_is_told_why_and_so_are_we(launch, free_port, change, message):
    hello = {"node": 1, "nodes": 2, "host": "h", "recipe": recipe_to_dict(RECIPE), **change}
    hub, answers = Hub(launch(0)), []
    guest = threading.Thread(target=lambda: answers.append(say_hello(free_port, hello)))
    guest.start()
    with pytest.raises(LaunchError, match=message) as raised:
        hub.meet(5, silent, nothing)
    guest.join()
    hub.close()
    assert decode(answers[0]) == {"refused": str(raised.value)}


def test_a_visitor_that_is_gone_before_it_is_heard_is_nobody(launch, free_port):
    hub, spoke = Hub(launch(0)), Spoke(launch(1))
    with socket.create_connection(("127.0.0.1", free_port + 1)) as scanner:
        scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
    guest = threading.Thread(target=spoke.meet, args=(5, silent, nothing))
    guest.start()
    hub.meet(5, silent, nothing)
    guest.join()
    for link in (hub, spoke):
        link.close()


def test_node_0_takes_as_many_files_as_there_are_nodes(launch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 700:
        pytest.skip("this machine does not allow so many files")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        Hub(launch(0, count=500)).close()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_node_0_cannot_prepare_is_told_to_all(launch):
    def fail():
        raise DataError("no text.")

    hub, spoke, told = Hub(launch(0)), Spoke(launch(1)), []

    def visit():
        with pytest.raises(LaunchError) as raised:
            spoke.meet(5, silent, nothing)
        told.append(str(raised.value))

    guest = threading.Thread(target=visit)
    guest.start()
    with pytest.raises(DataError, match="no text"):
        hub.meet(5, silent, fail)
    guest.join()
    hub.close()
    spoke.close()
    assert told == ["node 0 cannot prepare the run: DataError: no text."]


def test_the_others_wait_beyond_the_limit_while_node_0_prepares(launch, monkeypatch):
    monkeypatch.setattr("mindmodel.supervise.link.CONNECT_S", 1.0)
    hub, spoke = Hub(launch(0)), Spoke(launch(1))
    meeting = threading.Thread(target=hub.meet, args=(5, silent, lambda: time.sleep(2)))
    meeting.start()
    spoke.meet(0.5, silent, nothing)
    meeting.join()
    for link in (hub, spoke):
        link.close()


def test_an_interrupt_ends_the_waiting(launch):
    def interrupted(_text):
        raise KeyboardInterrupt

    hub = Hub(launch(0))
    with pytest.raises(KeyboardInterrupt):
        hub.meet(5, interrupted, nothing)
    hub.close()
    with pytest.raises(KeyboardInterrupt):
        Spoke(launch(1)).meet(5, interrupted, nothing)


def test_a_second_launcher_of_node_0_cannot_listen(launch):
    hub = Hub(launch(0))
    with pytest.raises(LaunchError, match="the launcher cannot listen on 127.0.0.1"):
        Hub(launch(0))
    hub.close()
