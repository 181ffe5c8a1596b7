"""Local servers of the demonstration: a mail server and an HTTP server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from asyncbg.core.clock import Clock
from asyncbg.errors import AsyncBGError
from asyncbg.service.integrations.signing import WebhookSigner

ITEMS = [{"id": number, "name": f"item {number}"} for number in range(1, 5)]


@dataclass
class MailSink:
    """SMTP server (RFC 5321) that accepts every message and counts them by recipient."""

    port: int = 0
    received: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port until the block ends."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient = ""
        writer.write(b"220 demo\r\n")
        while line := await reader.readline():
            match line[:4].upper():
                case b"RCPT":
                    recipient = line.decode("ascii", "replace").partition("<")[2].partition(">")[0]
                    writer.write(b"250 OK\r\n")
                case b"DATA":
                    writer.write(b"354 go on\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    self.received[recipient] = self.received.get(recipient, 0) + 1
                    writer.write(b"250 OK\r\n")
                case b"QUIT":
                    writer.write(b"221 bye\r\n")
                    break
                case _:
                    writer.write(b"250 demo\r\n")
        writer.close()


@dataclass
class HttpPeer:
    """HTTP server with a JSON document, which accepts webhooks with a valid signature."""

    secret: str
    clock: Clock
    url: str = ""
    verified: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port until the block ends."""
        app = web.Application()
        app.add_routes([web.get("/items.json", self._items), web.post("/hook", self._hook)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _items(self, _: web.Request) -> web.Response:
        return web.json_response(ITEMS)

    async def _hook(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            WebhookSigner([self.secret]).verify(request.headers, body, now_s=self.clock.now_ms() // 1000)
        except AsyncBGError:
            return web.Response(status=401)
        self.verified += 1
        return web.Response(status=204)
