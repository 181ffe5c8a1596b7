"""A scripted HTTP peer over real TCP: answers each request with the bytes it was told, and cuts where it was told."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """Bytes, and what happens to the connection after them."""

    raw: bytes
    hold: bool = False
    """Whether the connection stays open until the client hangs up."""


Reply = Answer | Callable[[Request], Answer]


@dataclass
class Peer:
    """Answers the first request with the first reply, and so on; the last one again and again."""

    port: int = 0
    replies: list[Reply] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client hung up on a connection that was held."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cursors(self) -> list[str | None]:
        """The Last-Event-ID of each request."""
        return [request.headers.get("last-event-id") for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        request = await _read(reader)
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        answer = reply if isinstance(reply, Answer) else reply(request)
        writer.write(answer.raw)
        await writer.drain()
        if answer.hold:
            await reader.read()
            self.left.set()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)


@asynccontextmanager
async def running_peer(*replies: Reply, port: int = 0) -> AsyncIterator[Peer]:
    """A peer with these replies on a free port."""
    peer = Peer(replies=list(replies))
    async with listening(peer.serve, port=port) as peer.port:
        yield peer


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    port: int = 0,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Serve connections on a free port; at the end none is left."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", port, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def answer(status: int, body: object = None, *, headers: Mapping[str, str] | None = None) -> Answer:
    """A whole answer; ``body`` is JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = {"Content-Length": str(len(content)), "Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return Answer(f"HTTP/1.1 {status} Told\r\n{head}\r\n".encode() + content)


NO_CONTENT = Answer(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
NOTHING = Answer(b"")
"""The request is read and never answered."""

_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def stream(*frames: bytes, cut: bool = False, hold: bool = False) -> Answer:
    """An event stream: that ends as it should, is ``cut`` off after the last byte, or is held open."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames)
    if hold:
        return Answer(_STREAM + chunks, hold=True)
    return Answer(_STREAM + chunks) if cut else Answer(_STREAM + chunks + b"0\r\n\r\n")


def frame(seq: int, kind: str, **data: Any) -> bytes:
    """The frame of one event, as the service writes it; ``seq`` 0 is one that is not stored."""
    event = {
        "id": f"e-{seq}" if seq else None,
        "type": kind,
        "time": "2026-11-22T10:15:00.250Z",
        "subject": "j1",
        "task": "work",
        "batch": "j1",
        "owner": "anonymous",
        "attempt": 1,
        "data": data,
    }
    head = f"id: e-{seq}\n" if seq else ""
    return f"{head}event: {kind}\ndata: {json.dumps(event)}\n\n".encode()


def frames(kinds: Iterable[str], first: int = 1) -> list[bytes]:
    """Frames of stored events, numbered from ``first``."""
    return [frame(seq, kind) for seq, kind in enumerate(kinds, first)]
