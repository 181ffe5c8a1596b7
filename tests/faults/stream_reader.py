"""The two kinds of clients of the stream loop: the library's own, and one that knows no more than the protocol."""

import asyncio
import json
import random
from typing import Protocol

import aiohttp

from asyncbg.client import Client


class Reader(Protocol):
    """Follows ``/events`` after a cursor for as long as it is let."""

    seen: list[tuple[str, str]]
    """The id and the type of each stored event, in the order they came."""
    resets: int

    async def follow(self, base_url: str, cursor: str) -> None:
        """Read until cancelled, whatever happens to the connection."""
        ...


class LibraryReader:
    """The library's client, which reconnects by itself."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.resets = 0

    async def follow(self, base_url: str, cursor: str) -> None:
        """Take what the client gives."""
        async with Client(base_url) as client:
            async for event in client.events(last_event_id=cursor):
                if event.is_reset:
                    self.resets += 1
                elif event.id:
                    self.seen.append((event.id, event.type))


class PlainReader:
    """A parser of its own, as strict as the protocol allows: frames end with an empty line, half a frame is nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.resets = 0

    async def follow(self, base_url: str, cursor: str) -> None:
        """Connect again at once, after the last id that a whole frame had."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(base_url, timeout=timeout) as session:
            while True:
                try:
                    headers = {"Last-Event-ID": cursor, "Accept-Encoding": "identity"}
                    async with session.get("/events", headers=headers) as response:
                        assert response.status == 200, f"a stream was answered {response.status}"
                        buffer = b""
                        async for chunk in response.content.iter_any():
                            *frames, buffer = (buffer + chunk).split(b"\n\n")
                            for frame in frames:
                                cursor = self._take(frame) or cursor
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(0.2 * random.random())

    def _take(self, frame: bytes) -> str:
        """Note one frame; the cursor it sets, if it sets one."""
        fields = dict(line.partition(": ")[::2] for line in frame.decode().split("\n") if not line.startswith(":"))
        kind, event_id = fields.get("event", ""), fields.get("id", "")
        if kind == "stream.reset":
            self.resets += 1
        elif kind and event_id:
            told = json.loads(fields["data"])
            assert (told["id"], told["type"]) == (event_id, kind), "an event's frame and its data tell different things"
            self.seen.append((event_id, kind))
        return event_id
