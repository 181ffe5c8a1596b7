"""A mail server that says what a test tells it to, whatever SMTP would have it say."""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

_SAID = {
    "BANNER": "220 mx.example ESMTP", "EHLO": "250-mx.example\r\n250 SIZE 10000000", "HELO": "250 mx.example",
    "STARTTLS": "454 4.7.0 not now", "AUTH": "235 ok", "MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go on",
    "EOD": "250 queued", "QUIT": "221 bye",
}  # fmt: skip


@dataclass
class SmtpScript:
    """``say`` maps a step to its reply, or to a list used up one by one of which the last stays.

    ``None`` hangs up, ``...`` stays silent, bytes are sent as they are. ``BODY`` (two replies) comes behind
    the first line of a message.
    """

    say: Mapping[str, object] = field(default_factory=dict)
    port: int = 0
    lines: list[str] = field(default_factory=list)
    mails: list[bytes] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port until the block ends."""
        writers: list[asyncio.StreamWriter] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._talk(reader, writer)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in writers:
                writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._reply(reader, writer, "BANNER")
        while line := (await reader.readline()).decode():
            self.lines.append(line.rstrip("\r\n"))
            step = line.split()[0].upper()
            said = await self._reply(reader, writer, step)
            if step == "DATA" and said.startswith(b"3"):
                if "BODY" in self.say:
                    await reader.readline()
                    for _ in range(2):
                        await self._reply(reader, writer, "BODY")
                    return
                self.mails.append(await reader.readuntil(b"\r\n.\r\n"))
                await self._reply(reader, writer, "EOD")
            while step == "AUTH" and said.startswith(b"334"):
                self.lines.append(base64.b64decode(await reader.readline()).decode())
                said = await self._reply(reader, writer, "AUTH")

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: str) -> bytes:
        said = self.say.get(step, _SAID.get(step, "500 what"))
        if isinstance(said, list):
            said = said.pop(0) if len(said) > 1 else said[0]
        if said is None:
            raise ConnectionError
        if said is ...:
            await reader.read()
        raw = said if isinstance(said, bytes) else f"{said}\r\n".encode()
        writer.write(raw)
        await writer.drain()
        return raw
