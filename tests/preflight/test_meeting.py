"""Node 0 hears the nodes of the job and nobody else, and whoever waits is told why it is over."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mindmodel.errors import LaunchError
from mindmodel.parallel.json_lines import MAX_LINE_BYTES
from mindmodel.parallel.nodes import Nodes
from mindmodel.preflight.link import PROTOCOL
from mindmodel.preflight.meeting import hold_meeting, port_is_free
from mindmodel.preflight.report import Fact, Report
from mindmodel.preflight.visit import visit_node_0


@pytest.fixture
def pool():
    with ThreadPoolExecutor() as threads:
        yield threads


class Meeting:
    """Node 0 of a job, in a thread."""

    def __init__(self, pool, count: int, timeout_s: float):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.pool, self.count, self.said = pool, count, []
        self.future = pool.submit(
            hold_meeting, self.nodes(0), {"token": None}, lambda reports: {"heard": sorted(reports)},
            self.said.append, timeout_s,
        )

    def nodes(self, rank: int, count=None) -> Nodes:
        return Nodes(count=count or self.count, rank=rank, master="127.0.0.1", port=self.port)

    def visit(self, rank: int, count=None, timeout_s: float = 10.0):
        """Another node, in a thread."""
        report = Report(host=f"host{rank}", facts={"python": Fact(text="3.11")}, recipe={})
        return self.pool.submit(visit_node_0, self.nodes(rank, count), lambda greeting, clock: report, timeout_s)

    def connect(self) -> socket.socket:
        for _ in range(500):
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=10)
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise AssertionError("node 0 does not listen")

    def stranger(self, sent: bytes) -> bytes:
        """The last line that comes back to whoever sends this."""
        with self.connect() as link:
            link.sendall(sent)
            return link.makefile("rb").read().splitlines()[-1]

    def wait_for(self, text: str) -> None:
        """Until node 0 said this."""
        for _ in range(500):
            if any(text in line for line in self.said):
                return
            time.sleep(0.02)
        raise AssertionError(f"never said {text!r}: {self.said}")


@pytest.fixture
def meeting(pool):
    return lambda count, timeout_s=10.0: Meeting(pool, count, timeout_s)


def hello(node: int, count: int = 2) -> bytes:
    return json.dumps({"protocol": PROTOCOL, "node": node, "nodes": count}).encode() + b"\n"


def test_every_node_gets_the_verdict_and_the_port_is_free_at_once(meeting):
    held = meeting(3)
    verdicts = [held.visit(2), held.visit(1), held.future]
    assert [verdict.result(20) for verdict in verdicts] == [{"heard": [1, 2]}] * 3
    port_is_free(held.nodes(0))
    with socket.create_server(("127.0.0.1", held.port), reuse_port=False):
        assert held.said == []


def test_many_nodes_meet(meeting, pool):
    held = meeting(24)
    pool._max_workers = 32
    others = [held.visit(node) for node in range(1, 24)]
    assert held.future.result(30) == {"heard": list(range(1, 24))} == others[7].result(30)


def test_a_node_that_never_comes_is_named_on_all_that_came(meeting):
    held = meeting(4, timeout_s=1.0)
    came = held.visit(2)
    told = f"2 nodes \\(1, 3\\) of 4 did not report to 127.0.0.1:{held.port} within 1 s. Start the same command there"
    with pytest.raises(LaunchError, match=told):
        held.future.result(20)
    with pytest.raises(LaunchError, match=told):
        came.result(20)


def test_of_very_many_missing_nodes_the_first_are_named(meeting):
    held = meeting(1024, timeout_s=0.3)
    with pytest.raises(LaunchError, match=r"^1023 nodes \(1, 2, .*, 16, \.\.\.\) of 1024 did not report"):
        held.future.result(20)


def test_node_0_that_never_comes_is_said_by_the_others(meeting, pool):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        nodes = Nodes(count=2, rank=1, master="127.0.0.1", port=listener.getsockname()[1])
        with pytest.raises(LaunchError, match=r"node 0 was not reached within 0.5 s \(Connection refused\)"):
            visit_node_0(nodes, None, 0.5)
    unknown = Nodes(count=2, rank=1, master="no.such.host.invalid", port=9000)
    with pytest.raises(LaunchError, match=r"no.such.host.invalid:9000: node 0 was not reached .*\(unknown host\)"):
        visit_node_0(unknown, None, 0.1)


def test_a_port_in_use_is_named(pool):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"--master 127.0.0.1:{port}: another program has this port. Use another"):
            hold_meeting(Nodes(count=2, master="127.0.0.1", port=port), {}, None, None, 1)


def test_an_address_that_is_not_node_0s_is_named():
    with pytest.raises(LaunchError, match="--master 192.0.2.1:9000: node 0 cannot listen there. Use an"):
        port_is_free(Nodes(master="192.0.2.1", port=9000))
    with pytest.raises(LaunchError, match="'no.such.host.invalid' is an unknown host. Use an address of node 0"):
        port_is_free(Nodes(master="no.such.host.invalid", port=9000))


@pytest.mark.parametrize(
    "sent, told",
    [
        (b"GET / HTTP/1.1\r\n", "it sent a line that is not JSON"),
        (b"\x80\x04\x95 pickle\n", "it sent a line that is not JSON"),
        (b"[" * 100_000 + b"\n", "it sent a line that is not JSON"),
        (b"[1]\n", "it sent a line that is no JSON object"),
        (b"x" * (MAX_LINE_BYTES + 10), f"it sent a line of more than {MAX_LINE_BYTES} bytes"),
        (b"{}\n", "it does not begin as `mindmodel launch --check` of this version does"),
        (hello(1, 3), "it was started with --nodes 3, node 0 with --nodes 2"),
        (hello(2), "--node-rank 2 is not 1 to 1"),
        (hello(True), "--node-rank True is not 1 to 1"),
        (hello(1) + b'{"report": 3}\n', "node 1 sent a report without facts"),
        (hello(1) + b'{"report": {"host": 7, "facts": {}, "recipe": {}}}\n', "node 1 sent a report with a text that"),
        (hello(1) + b'{"nothing": 1}\n', "node 1 sent a report without facts"),
    ],
)
def test_whoever_does_not_keep_to_the_protocol_is_refused_and_the_meeting_goes_on(sent, told, meeting):
    held = meeting(2)
    answer = json.loads(held.stranger(sent))
    assert answer["error"].startswith(f"node 0 refuses this node: {told}")
    held.wait_for(f"127.0.0.1 is refused: {told}")
    assert held.visit(1).result(20) == held.future.result(20) == {"heard": [1]}


def test_a_node_that_is_refused_says_why(meeting):
    held = meeting(2)
    with pytest.raises(LaunchError, match="refuses this node: it was started with --nodes 3, node 0 with --nodes 2"):
        held.visit(1, count=3).result(20)
    held.visit(1).result(20)


def test_two_nodes_of_one_number_are_told_apart(meeting):
    held = meeting(3, timeout_s=1.0)
    with held.connect() as first:
        first.sendall(hello(1, 3))
        assert b"token" in first.makefile("rb").readline()
        with pytest.raises(LaunchError, match="node 1 is here already, from 127.0.0.1; each has its own --node-rank"):
            held.visit(1).result(20)


def test_a_node_that_goes_away_may_come_again(meeting):
    held = meeting(2)
    with held.connect() as link:
        link.sendall(hello(1))
        assert b"token" in link.makefile("rb").readline()
    assert held.visit(1).result(20) == {"heard": [1]}


def test_a_visitor_that_says_nothing_does_not_keep_the_others(meeting):
    held = meeting(2)
    with held.connect():
        assert held.visit(1).result(20) == held.future.result(1) == {"heard": [1]}


def answering(pool, answer: bytes):
    """A program that listens and sends the same to everybody; gives its nodes as node 1 sees them."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as link:
            link.sendall(answer)
            while answer and link.recv(1 << 16):
                pass

    pool.submit(serve)
    return Nodes(count=2, rank=1, master="127.0.0.1", port=server.getsockname()[1])


@pytest.mark.parametrize(
    "answer, told",
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is not node 0 of this check: it sent a line that is not JSON. Another program"),
        (b'{"token": null}\n{}\n', "is not node 0 of this check: it does not tell the time"),
        (b'{"token": null}\n' + b'{"time": 1.5}\n' * 5 + b"{}\n", "is not node 0 of this check: it gave no verdict"),
        (b"", "went away before its verdict. See what it says, and start again"),
    ],
)
def test_another_program_in_node_0s_place_is_named(answer, told, pool):
    report = Report(host="h", facts={}, recipe={})
    with pytest.raises(LaunchError, match=told):
        visit_node_0(answering(pool, answer), lambda greeting, clock: report, 5)


def test_a_node_0_that_hangs_is_left_at_the_limit(pool, monkeypatch):
    monkeypatch.setattr("mindmodel.preflight.visit.FAREWELL_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nodes = Nodes(count=2, rank=1, master="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(LaunchError, match="gave no verdict in 0.3 s. See what it says, and start again"):
            visit_node_0(nodes, None, 0.3)


def test_a_nodes_clock_is_compared_with_node_0s(meeting):
    seen = []
    held = meeting(2)
    report = Report(host="h", facts={}, recipe={})

    def reporting(_greeting, clock):
        seen.append(clock)
        return report

    visit_node_0(held.nodes(1), reporting, 10)
    assert abs(seen[0].ahead_s) <= seen[0].error_s + 0.01 and seen[0].error_s >= 0
