"""The other nodes' part before a launch: go to node 0, compare clocks, report, and bring back the verdict."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Callable, NamedTuple

from mindmodel.errors import LaunchError
from mindmodel.parallel.json_lines import MAX_LINE_BYTES, Message, Stranger
from mindmodel.parallel.nodes import Nodes
from mindmodel.preflight.link import FAREWELL_S, PROTOCOL, Link
from mindmodel.preflight.report import Report

RETRY_S = 0.25
NUM_PINGS = 5


class Clock(NamedTuple):
    """This machine's clock beside node 0's.

    Attributes:
        ahead_s: by how much it is ahead.
        error_s: how far off that may be.
    """

    ahead_s: float
    error_s: float


Reporting = Callable[[Message, Clock], Report]


def visit_node_0(nodes: Nodes, report: Reporting, timeout_s: float) -> Message:
    """Report to node 0, which may be started later than this node.

    Args:
        report: makes the report of node 0's greeting and this node's clock.
        timeout_s: by when node 0 must be there, and then again by when it must have judged.

    Returns:
        The verdict.

    Raises:
        LaunchError: if node 0 is not there, refuses this node, goes away, misses a node, or is another program.
    """
    return asyncio.run(_visit(nodes, report, timeout_s))


async def _visit(nodes: Nodes, report: Reporting, timeout_s: float) -> Message:
    link, where = await _reach(nodes, timeout_s), f"node 0 at {nodes.master}:{nodes.port}"
    try:
        return await asyncio.wait_for(_report(link, nodes, report), timeout_s + FAREWELL_S)
    except Stranger as fault:
        raise LaunchError(
            f"--master {nodes.master}:{nodes.port}: what answers there is not node 0 of this check: {fault}. "
            "Another program has the port; use another one on every node: --master HOST:PORT."
        ) from fault
    except asyncio.TimeoutError as error:
        raise LaunchError(f"{where} gave no verdict in {timeout_s:g} s. See what it says, and start again.") from error
    except OSError as error:
        raise LaunchError(f"{where} went away before its verdict. See what it says, and start again.") from error
    finally:
        link.writer.close()


async def _report(link: Link, nodes: Nodes, report: Reporting) -> Message:
    await link.send({"protocol": PROTOCOL, "node": nodes.rank, "nodes": nodes.count})
    greeting = await link.answer()
    clock = await _clock(link)
    await link.send({"report": report(greeting, clock).to_message()})
    verdict = (await link.answer()).get("verdict")
    if not isinstance(verdict, dict):
        raise Stranger("it gave no verdict")
    return verdict


async def _clock(link: Link) -> Clock:
    """From the quickest of a few round trips.

    Source: the offset of RFC 5905 (NTP), section 8, with one time stamp for arrival at and departure from node 0.
    """
    found = []
    for _ in range(NUM_PINGS):
        sent_s, began_s = time.time(), time.perf_counter()
        await link.send({"ping": 1})
        there_s = (await link.answer()).get("time")
        if not isinstance(there_s, float):
            raise Stranger("it does not tell the time")
        half_trip_s = (time.perf_counter() - began_s) / 2
        found.append(Clock(ahead_s=sent_s + half_trip_s - there_s, error_s=half_trip_s))
    return min(found, key=lambda clock: clock.error_s)


async def _reach(nodes: Nodes, timeout_s: float) -> Link:
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            return await asyncio.wait_for(_connect(nodes), max(RETRY_S, end_s - time.monotonic()))
        except (OSError, asyncio.TimeoutError) as error:
            if time.monotonic() + RETRY_S >= end_s:
                raise LaunchError(
                    f"--master {nodes.master}:{nodes.port}: node 0 was not reached within {timeout_s:g} s "
                    f"({_reason(error)}). "
                    "Start the same command there with --node-rank 0, and see whether this node reaches that address."
                ) from error
        await asyncio.sleep(RETRY_S)


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "unknown host"
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error) or "no answer"


async def _connect(nodes: Nodes) -> Link:
    reader, writer = await asyncio.open_connection(nodes.master, nodes.port, limit=MAX_LINE_BYTES)
    if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
        writer.close()  # nobody listens: the system chose the master's port for this end, and TCP met itself
        raise ConnectionRefusedError("no answer")
    return Link(reader, writer)
