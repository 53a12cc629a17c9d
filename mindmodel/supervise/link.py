"""One connection from the launcher of every node to that of node 0, so that each knows of the others' failures.

A message is an object of one kind and its value; what is none ends the connection. Nothing is trusted to be a launcher
before it has said which node it is and which recipe it runs.
"""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable, Optional

from mindmodel.errors import LaunchError, MindModelError, RecipeError
from mindmodel.parallel.heartbeat import host_name
from mindmodel.parallel.json_lines import MAX_LINE_BYTES, Stranger, allow_connections, decode, encode
from mindmodel.parallel.launch import Launch, resolve
from mindmodel.recipe.dump import describe, differences, recipe_to_dict
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import printable

SILENCE_S = 60.0
ALIVE_S = 2.0
HELLO_S = 10.0
CONNECT_S = 5.0

Prepare = Callable[[], None]
"""Makes what all nodes need before a process starts."""

Waiting = Callable[[str], None]
"""Called again and again with what is waited for; it may raise."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """From another launcher. Kind `lost`: its connection is gone."""

    node: int
    kind: str
    value: Any = None


class Channel:
    """One connection: messages in and out, never waited for."""

    def __init__(self, connection: socket.socket, address: str) -> None:
        connection.setblocking(False)
        self.connection: Optional[socket.socket] = connection
        self.address = address
        self.heard_s = time.monotonic()
        self._in, self._out = b"", b""

    def send(self, kind: str, value: Any = None) -> None:
        """Send as much as goes out now; the rest follows when the channel is looked at again."""
        self._out += encode({kind: value})
        self.flush()

    def flush(self) -> None:
        """Send what is left."""
        try:
            while self._out and self.connection is not None:
                self._out = self._out[self.connection.send(self._out):]
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def receive(self) -> list[tuple[str, Any]]:
        """The messages that have come; closes the channel when the other end did or sends something else."""
        self.flush()
        messages: list[tuple[str, Any]] = []
        try:
            self._read()
            *lines, self._in = self._in.split(b"\n")
            for line in lines:
                messages += decode(line).items()
        except Stranger:
            self.close()
        if len(self._in) > MAX_LINE_BYTES:
            self.close()
        return messages

    def _read(self) -> None:
        """What is there, up to a limit; the rest is for the next time."""
        try:
            while self.connection is not None and len(self._in) <= MAX_LINE_BYTES:
                piece = self.connection.recv(1 << 16)
                if not piece:
                    self.close()
                self._in += piece
                self.heard_s = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def silent(self) -> bool:
        """Whether nothing has come for so long that the other end must be gone."""
        return time.monotonic() - self.heard_s > SILENCE_S

    def close(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Link:
    """This launcher's channels. On one node there is none, and nobody to hear."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.nodes = launch, launch.nodes
        self.channels: dict[int, Channel] = {}
        self.hosts: dict[int, str] = {}
        self._lost: set[int] = set()

    def meet(self, timeout_s: float, waiting: Waiting, prepare: Prepare) -> None:
        """Return when all nodes are there and node 0 has prepared what all need."""
        prepare()

    def send(self, kind: str, value: Any = None, node: Optional[int] = None) -> None:
        """To one node, or to all that this one is connected to."""
        for number, channel in self.channels.items():
            if node in (None, number):
                channel.send(kind, value)

    def receive(self) -> list[Message]:
        """What has come; a node whose connection is gone, or silent, is told once."""
        found = []
        for node, channel in self.channels.items():
            found += [Message(node=node, kind=kind, value=value) for kind, value in channel.receive()]
            if (channel.connection is None or channel.silent()) and node not in self._lost:
                channel.close()
                self._lost.add(node)
                found.append(Message(node=node, kind="lost"))
        return found

    def _begin(self) -> None:
        """From now on silence counts: while they waited for one another, nodes had nothing to say."""
        for channel in self.channels.values():
            channel.heard_s = time.monotonic()

    def host_of(self, node: int) -> str:
        """As the node has called itself, else its address."""
        return self.hosts.get(node) or self.channels[node].address

    def close(self) -> None:
        """Close all channels."""
        for channel in self.channels.values():
            channel.flush()
            channel.close()


class Hub(Link):
    """Of node 0: listens on the port after the scheduler's.

    Raises:
        LaunchError: if it cannot.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        family, address = resolve(self.nodes.master)
        allow_connections(self.nodes.count)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((address, self.nodes.launcher_port))
            self._socket.listen(self.nodes.count + 16)
        except OSError as error:
            self._socket.close()
            raise LaunchError(
                f"--master: the launcher cannot listen on {self.nodes.master}:{self.nodes.launcher_port}, the port "
                f"after the scheduler's: {error.strerror}. Use --master HOST:PORT with a port of which the next is "
                "free too."
            ) from error

    def meet(self, timeout_s: float, waiting: Waiting, prepare: Prepare) -> None:
        """Wait for all other nodes, prepare what all need, then tell them to start.

        Raises:
            LaunchError: if one does not come in time, or comes with another recipe.
            MindModelError: if `prepare` does; the others are told.
        """
        end, guests = time.monotonic() + timeout_s, dict[Channel, float]()
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while missing := [node for node in range(1, self.nodes.count) if node not in self.channels]:
                names = f"{'nodes' if len(missing) > 1 else 'node'} {', '.join(map(str, missing))}"
                if time.monotonic() > end:
                    raise self._refusal(
                        f"{names} of {self.nodes.count} did not come within {timeout_s:.0f} s. Start the same "
                        f"command there with --node-rank; port {self.nodes.port} of node 0 and the next must be "
                        "reachable."
                    )
                waiting(f"waiting for {names}")
                if selector.select(0.1):
                    connection, address = self._socket.accept()
                    guests[Channel(connection, str(address[0]))] = time.monotonic()
                self._welcome(guests)
                self._forget_those_who_left()
        self._socket.close()
        self.send("preparing")
        try:
            prepare()
        except MindModelError as error:
            self._refusal(f"node 0 cannot prepare the run: {type(error).__name__}: {error}")
            raise
        self.send("start")
        self._begin()

    def _welcome(self, guests: dict[Channel, float]) -> None:
        """Those who have said hello become nodes; those who say nothing are sent away."""
        for guest, since in list(guests.items()):
            messages = guest.receive()
            if messages and messages[0][0] == "hello":
                del guests[guest]
                self._admit(guest, messages[0][1])
            elif messages or guest.connection is None or time.monotonic() - since > HELLO_S:
                guest.close()
                del guests[guest]

    def _forget_those_who_left(self) -> None:
        """They may come again."""
        for node, channel in list(self.channels.items()):
            if channel.receive() or channel.connection is None:
                channel.close()
                del self.channels[node]

    def _admit(self, guest: Channel, hello: Any) -> None:
        hello = hello if isinstance(hello, dict) else {}
        node, host = hello.get("node"), printable(str(hello.get("host")))[:64]
        if type(node) is not int or hello.get("nodes") != self.nodes.count:
            raise self._refusal(
                f"the launcher at {guest.address} has other nodes than --nodes {self.nodes.count}. Start the same "
                "command on every node.", guest
            )
        if not 0 < node < self.nodes.count or node in self.channels:
            raise self._refusal(
                f"two nodes say --node-rank {node}: {self.hosts.get(node, host_name())} and {host}. Each "
                "needs a number of its own.", guest
            )
        if fault := _another_recipe(self.launch.recipe, hello.get("recipe")):
            raise self._refusal(
                f"node {node} ({host}) has another recipe than node 0: {printable(fault)}. Start the same command "
                "with the same files on every node.", guest
            )
        self.channels[node], self.hosts[node] = guest, host

    def _refusal(self, text: str, guest: Optional[Channel] = None) -> LaunchError:
        """Told to all who have come."""
        self.send("refused", text)
        if guest is not None:
            guest.send("refused", text)
            guest.close()
        return LaunchError(text)

    def close(self) -> None:
        """Close all channels and the port."""
        self._socket.close()
        super().close()


class Spoke(Link):
    """Of every other node."""

    def meet(self, timeout_s: float, waiting: Waiting, prepare: Prepare) -> None:
        """Find node 0 and wait until it says that all are there and the run is prepared, which is not for this node.

        Raises:
            LaunchError: if node 0 does not answer in time, leaves, or refuses this node.
        """
        nodes, end = self.nodes, time.monotonic() + timeout_s
        where = f"{nodes.master}:{nodes.launcher_port}"
        while not self.channels:
            waiting(f"waiting for node 0 at {where}")
            if time.monotonic() > end:
                raise LaunchError(
                    f"--master: node 0 did not answer at {where} within {timeout_s:.0f} s. Start the same command "
                    "there with --node-rank 0; the port must be reachable from here."
                )
            self._call()
        end += CONNECT_S  # node 0 knows which nodes are missing, and says so
        recipe = recipe_to_dict(self.launch.recipe)
        self.send("hello", {"node": nodes.rank, "nodes": nodes.count, "host": host_name(), "recipe": recipe})
        self._wait_for_start(where, end, waiting)
        self._begin()

    def _call(self) -> None:
        _, address = resolve(self.nodes.master)
        try:
            connection = socket.create_connection((address, self.nodes.launcher_port), CONNECT_S)
            self.channels[0] = Channel(connection, address)
        except OSError:
            time.sleep(0.2)

    def _wait_for_start(self, where: str, end: float, waiting: Waiting) -> None:
        channel, what = self.channels[0], "waiting for the other nodes"
        while channel.connection is not None and time.monotonic() < end:
            waiting(what)
            for kind, value in channel.receive():
                if kind == "refused":
                    raise LaunchError(printable(str(value)))
                if kind == "start":
                    return
                if kind == "preparing":  # reading texts may take long, and all are there
                    end, what = float("inf"), "node 0 prepares the run"
            time.sleep(0.05)
        if channel.connection is not None:
            raise LaunchError("the other nodes did not come within the time limit. What node 0 says tells which.")
        raise LaunchError(f"node 0 at {where} has ended before all nodes were there. What it says tells why.")


def _another_recipe(own: Recipe, received: Any) -> str:
    """How the recipe that came differs; empty when it does not."""
    if received == recipe_to_dict(own):
        return ""
    with suppress(RecipeError, AttributeError, KeyError, TypeError):
        return "; ".join(describe(differences(own, recipe_from_dict(received, "the other node")))) or "its name"
    return "it cannot be read by this version of mindmodel"


def link_of(launch: Launch) -> Link:
    """The kind of link that this node needs.

    Raises:
        LaunchError: if node 0 cannot listen.
    """
    if launch.nodes.count == 1:
        return Link(launch)
    return Spoke(launch) if launch.nodes.rank else Hub(launch)
