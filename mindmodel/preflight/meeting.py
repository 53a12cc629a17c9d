"""Node 0's part before a launch: hear what every other node reports, judge, and tell all of them the verdict."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from contextlib import suppress
from typing import Awaitable, Callable

from mindmodel.errors import LaunchError
from mindmodel.parallel.json_lines import MAX_LINE_BYTES, Message, Stranger, allow_connections
from mindmodel.parallel.nodes import Nodes
from mindmodel.preflight.link import FAREWELL_S, PROTOCOL, Link
from mindmodel.preflight.report import Report, report_of

SHOWN_NODES = 16

Judge = Callable[[dict[int, Report]], Message]


def hold_meeting(
    nodes: Nodes, greeting: Message, judge: Judge, say: Callable[[str], None], timeout_s: float
) -> Message:
    """Hear every other node, then send all of them the verdict.

    Args:
        greeting: what each node is told first.
        judge: makes the verdict of the reports, by node.
        say: called with one line for each visitor that is refused.
        timeout_s: by when all must have reported.

    Returns:
        The verdict.

    Raises:
        LaunchError: if the port cannot be had, or a node did not report in time; the others are told the same.
    """
    allow_connections(nodes.count)
    return asyncio.run(_Meeting(nodes, greeting, judge, say).hold(timeout_s))


class _Meeting:
    """What is known while the others report."""

    def __init__(self, nodes: Nodes, greeting: Message, judge: Judge, say: Callable[[str], None]):
        self.nodes, self.greeting, self.judge, self.say = nodes, greeting, judge, say
        self.present: dict[int, str] = {}
        self.reports: dict[int, Report] = {}
        self.complete, self.judged = asyncio.Event(), asyncio.Event()
        self.last_word: Message = {"error": "node 0 was interrupted"}
        self.farewells: set[asyncio.Task] = set()

    async def hold(self, timeout_s: float) -> Message:
        server = await _listen(self.nodes, self._visited)
        try:
            await asyncio.wait_for(self.complete.wait(), timeout_s)
            self.last_word = {"verdict": self.judge(self.reports)}
        except asyncio.TimeoutError:
            self.last_word = {"error": self._missing(timeout_s)}
        finally:
            server.close()
            self.judged.set()
            await self._farewell()
        if "error" in self.last_word:
            raise LaunchError(self.last_word["error"])
        return self.last_word["verdict"]

    async def _farewell(self) -> None:
        """Those that reported close their connections first, so that the port is free at once."""
        if self.farewells:
            await asyncio.wait(self.farewells, timeout=FAREWELL_S)

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, of whoever it is."""
        link = Link(reader, writer)
        try:
            await self._hear(link)
        except Stranger as fault:
            self.say(f"{link.peer} is refused: {fault}.")
            with suppress(OSError, asyncio.TimeoutError):
                await link.part_with({"error": f"node 0 refuses this node: {fault}."})
        except OSError:
            pass  # it is gone
        finally:
            writer.close()

    async def _hear(self, link: Link) -> None:
        node = self._node_of(await link.receive(), link.peer)
        try:
            await link.send(self.greeting)
            while "ping" in (message := await link.receive()):
                await link.send({"time": time.time()})
            self.reports[node] = report_of(message.get("report"))
            self.farewells.add(_this_task())
        except ValueError as error:
            raise Stranger(f"node {node} sent {error}") from error
        finally:
            if node not in self.reports:
                del self.present[node]
        if len(self.reports) == self.nodes.count - 1:
            self.complete.set()
        await self.judged.wait()
        await link.part_with(self.last_word)

    def _node_of(self, hello: Message, peer: str) -> int:
        """The number that a visitor says it has, if there is such a node and it is not here yet."""
        node, count = hello.get("node"), hello.get("nodes")
        if hello.get("protocol") != PROTOCOL:
            raise Stranger("it does not begin as `mindmodel launch --check` of this version does")
        if count != self.nodes.count:
            raise Stranger(f"it was started with --nodes {count!r}, node 0 with --nodes {self.nodes.count}")
        if type(node) is not int or not 0 < node < self.nodes.count:
            raise Stranger(f"--node-rank {node!r} is not 1 to {self.nodes.count - 1}")
        if node in self.present:
            raise Stranger(f"node {node} is here already, from {self.present[node]}; each has its own --node-rank")
        self.present[node] = peer
        return node

    def _missing(self, timeout_s: float) -> str:
        missing = [node for node in range(1, self.nodes.count) if node not in self.reports]
        names = ", ".join(map(str, missing[:SHOWN_NODES])) + (", ..." if len(missing) > SHOWN_NODES else "")
        word, number = ("node", names) if len(missing) == 1 else (f"{len(missing)} nodes", f"({names})")
        return (
            f"{word} {number} of {self.nodes.count} did not report to {self.nodes.master}:{self.nodes.port} within "
            f"{timeout_s:g} s. Start the same command there, with its --node-rank, and see whether it reaches that "
            "address."
        )


def _this_task() -> asyncio.Task:
    task = asyncio.current_task()
    assert task is not None
    return task


def port_is_free(nodes: Nodes) -> None:
    """See that a scheduler could listen at the master's address.

    Raises:
        LaunchError: if that is not this machine's, or the port is taken.
    """

    async def try_once() -> None:
        (await _listen(nodes, _nobody)).close()

    asyncio.run(try_once())


async def _nobody(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _listen(nodes: Nodes, visited: Callable[..., Awaitable[None]]) -> asyncio.AbstractServer:
    """Listen where the job's scheduler will."""
    where, works = f"{nodes.master}:{nodes.port}", "Use an address of node 0, which is this machine."
    try:
        return await asyncio.start_server(
            visited, nodes.master, nodes.port, limit=MAX_LINE_BYTES, backlog=nodes.count + 16, reuse_address=True
        )
    except socket.gaierror as error:
        raise LaunchError(f"--master {where}: '{nodes.master}' is an unknown host. {works}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LaunchError(
                f"--master {where}: another program has this port. Use another one on every node: --master HOST:PORT."
            ) from error
        raise LaunchError(f"--master {where}: node 0 cannot listen there. {works}") from error
