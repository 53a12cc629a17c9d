"""Messages between the nodes that meet before a launch: JSON objects, a line each, of limited length.

What passes, node K to the left, node 0 to the right:

    {"protocol", "node", "nodes"}  ->
                                   <-  the greeting
    {"ping"}, several times        ->
                                   <-  {"time"}
    {"report"}                     ->
                                   <-  {"verdict"}, once all have reported

Instead of an answer there may be {"error"}, which ends it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from mindmodel.errors import LaunchError

Message = dict[str, Any]

PROTOCOL = "mindmodel check 1"
MAX_LINE_BYTES = 1 << 18
FAREWELL_S = 5.0
"""How long node 0 waits until the others have read the verdict."""


class Stranger(Exception):
    """The other side does not keep to the protocol; the text says how."""


class Link:
    """One connection.

    Args:
        reader: with a limit of MAX_LINE_BYTES.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    @property
    def peer(self) -> str:
        """Address of the other side."""
        return str((self.writer.get_extra_info("peername") or ("a visitor that is gone",))[0])

    async def send(self, message: Message) -> None:
        """Pass a message on.

        Raises:
            OSError: if the other side is gone.
        """
        self.writer.write(json.dumps(message).encode() + b"\n")
        await self.writer.drain()

    async def part_with(self, message: Message) -> None:
        """Send a last message, and wait a little until the other side has closed: it may not lose what it was sent.

        Raises:
            OSError, asyncio.TimeoutError: if it is gone, or stays.
        """
        await self.send(message)
        self.writer.write_eof()
        await asyncio.wait_for(self._unread(), FAREWELL_S)

    async def _unread(self) -> None:
        while await self.reader.read(1 << 16):
            pass

    async def receive(self) -> Message:
        """The next message.

        Raises:
            Stranger: if it is none.
            OSError: if the other side is gone.
        """
        try:
            line = await self.reader.readline()
        except ValueError as error:
            raise Stranger(f"it sent a line of more than {MAX_LINE_BYTES} bytes") from error
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the connection ended")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Stranger("it sent a line that is not JSON") from error
        if not isinstance(message, dict):
            raise Stranger("it sent a line that is no JSON object")
        return message

    async def answer(self) -> Message:
        """The next message of node 0, unless it is that this is over.

        Raises:
            LaunchError: if it is.
        """
        message = await self.receive()
        if "error" in message:
            raise LaunchError(str(message["error"]))
        return message
