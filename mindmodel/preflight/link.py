"""The messages between nodes that meet before a launch.

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

from mindmodel.errors import LaunchError
from mindmodel.parallel.json_lines import TOO_LONG, Message, Stranger, decode, encode

PROTOCOL = "mindmodel check 1"
FAREWELL_S = 5.0
"""How long node 0 waits until the others have read the verdict."""


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
        self.writer.write(encode(message))
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
            raise Stranger(TOO_LONG) from error
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the connection ended")
        return decode(line)

    async def answer(self) -> Message:
        """The next message of node 0, unless it is that this is over.

        Raises:
            LaunchError: if it is.
        """
        message = await self.receive()
        if "error" in message:
            raise LaunchError(str(message["error"]))
        return message
