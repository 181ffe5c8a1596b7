"""A line between one client and the server, that is cut again and again at random places of what it carries."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Sequence


class Line:
    """Relays TCP connections to the server's port, and cuts them: each cut is at a byte, drawn beforehand.

    One in two cuts resets the connection (what the client has not read is lost), the others end it like a server that
    is gone: after the bytes before, which may be half a frame.
    """

    def __init__(self, server_port: int, *, cuts: Sequence[int], rng: random.Random) -> None:
        """``cuts`` are counts of bytes carried to the client, over all connections."""
        self._server_port = server_port
        self._cuts = sorted(cuts, reverse=True)
        self._rng = rng
        self._carried = 0
        self._relays: set[asyncio.Task[None]] = set()
        self.port = 0
        self.times_cut = 0
        self.times_connected = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Line"]:
        """Listen until the block ends."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, family=socket.AF_INET)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for relay in self._relays:
                relay.cancel()
            await asyncio.gather(*self._relays, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.create_task(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end, whoever ends it."""
        to_server: asyncio.StreamWriter | None = None
        up: asyncio.Task[None] | None = None
        with contextlib.suppress(OSError):
            try:
                from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
                self.times_connected += 1
                up = asyncio.create_task(_pass_on(reader, to_server))
                await self._carry(from_server, writer)
            finally:
                if up is not None:
                    up.cancel()
                for end in (writer, to_server):
                    if end is not None:
                        end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From the server to the client, until the place of the next cut."""
        while chunk := await reader.read(65_536):
            room = self._cuts[-1] - self._carried if self._cuts else len(chunk) + 1
            chunk = chunk[: max(room, 0)]
            self._carried += len(chunk)
            writer.write(chunk)
            if self._cuts and self._carried >= self._cuts[-1]:
                self._cuts.pop()
                self.times_cut += 1
                if self._rng.random() < 0.5:
                    writer.transport.abort()
                return
            await writer.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """From the client to the server."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
    writer.close()
