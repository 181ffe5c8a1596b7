"""Event streams over bare ASGI that are right, or wrong in one known way each."""

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


@dataclass
class Endpoint:
    """A small endpoint with a log, at ``/events``; ``/ended`` has said all. Each field can be made wrong."""

    headers: dict[str, str] = field(default_factory=lambda: dict(HEADERS))
    status: int = 200
    greeting: bytes = b": hello\nretry: 1000\n\n"
    frame: Callable[[int], bytes] = lambda number: b"id: e-%d\nevent: thing\ndata: {}\n\n" % number
    replay_from: Callable[[int], int] = lambda cursor: cursor
    unknown_status: int = 200
    ended_again_status: int = 204
    end: bytes = b""
    head_status: int = 200
    heartbeat_s: float | None = 0.05
    is_deaf: bool = False
    holds_back: bool = False
    compress: str = ""
    counts: int = 0
    listeners: set[asyncio.Event] = field(default_factory=set)

    def make(self) -> None:
        """One more event."""
        self.counts += 1
        for listener in self.listeners:
            listener.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        names = {name.decode(): value.decode() for name, value in scope["headers"]}
        cursor = self._cursor(scope["path"], names.get("last-event-id"))
        if scope["method"] == "HEAD":
            await _answer(send, self.head_status, self.headers)
        elif cursor is None:
            await _answer(send, self.unknown_status, self.headers)
        elif scope["path"] == "/ended" and cursor:
            await _answer(send, self.ended_again_status, {})
        elif self.status != 200:
            await _answer(send, self.status, self.headers)
        elif self.is_deaf:
            await self._stream(scope, names, cursor, send)
        else:
            streaming = asyncio.ensure_future(self._stream(scope, names, cursor, send))
            leaving = asyncio.ensure_future(_left(receive))
            await asyncio.wait([streaming, leaving], return_when=asyncio.FIRST_COMPLETED)
            for task in (streaming, leaving):
                task.cancel()

    def _cursor(self, path: str, header: str | None) -> int | None:
        """The number of the event that was seen last; None where the cursor is not known and that is an error."""
        if not header or path == "/ended":
            return int(header == "e-1")
        line = b"id: " + header.encode("latin-1") + b"\n"
        known = (number for number in range(1, self.counts + 1) if line in self.frame(number))
        return next(known, None if self.unknown_status != 200 else 0)

    async def _stream(self, scope: Any, names: dict[str, str], cursor: int, send: Any) -> None:
        squeezed = self.compress and "gzip" in names.get("accept-encoding", "")
        extra = {"content-encoding": "gzip", "vary": "Accept-Encoding"} if squeezed else {}
        await _start(send, 200, self.headers | extra)

        async def put(chunk: bytes, *, more: bool = True) -> None:
            if squeezed and self.compress == "flushed":
                chunk = gzip.compress(chunk)
            elif squeezed:
                chunk = b""
            await send({"type": "http.response.body", "body": chunk, "more_body": more})

        listener = asyncio.Event()
        self.listeners.add(listener)
        try:
            at = self.replay_from(cursor) if cursor else self.counts
            await put(self.greeting)
            if scope["path"] == "/ended":
                await put(b"id: e-1\ndata: last\n\n" + self.end, more=False)
                return
            while True:
                if at < self.counts and not self.holds_back:
                    at += 1
                    await put(self.frame(at))
                    continue
                listener.clear()
                try:
                    await asyncio.wait_for(listener.wait(), self.heartbeat_s)
                except TimeoutError:
                    await put(b": heartbeat\n\n")
        finally:
            self.listeners.discard(listener)


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Any, status: int, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _answer(send: Any, status: int, headers: dict[str, str]) -> None:
    await _start(send, status, headers)
    await send({"type": "http.response.body", "body": b""})


def _without(name: str) -> dict[str, str]:
    return {key: value for key, value in HEADERS.items() if key != name}


def _numbered(text: str) -> Callable[[int], bytes]:
    return lambda number: text.format(number).encode()


BROKEN: dict[str, tuple[Endpoint, set[str]]] = {
    "an error status": (Endpoint(status=500), {"status", "whole-frames", "end-204"}),
    "another type": (Endpoint(headers=HEADERS | {"content-type": "text/plain"}), {"content-type"}),
    "another charset": (
        Endpoint(headers=HEADERS | {"content-type": "text/event-stream; charset=latin-1"}), {"content-type"},
    ),
    "a cache may keep it": (
        Endpoint(headers=HEADERS | {"cache-control": "no-transform"}), {"cache-control"},
    ),
    "a proxy may recompress": (Endpoint(headers=HEADERS | {"cache-control": "no-cache"}), {"no-transform"}),
    "nginx buffers": (Endpoint(headers=_without("x-accel-buffering")), {"no-buffering"}),
    "a length": (Endpoint(headers=HEADERS | {"content-length": "9999999"}), {"no-length"}),
    "silence first": (Endpoint(greeting=b"", heartbeat_s=None), {"first-bytes", "retry"}),
    "no retry": (Endpoint(greeting=b": hello\n\n"), {"retry"}),
    "a retry in words": (Endpoint(greeting=b"retry: soon\n\n"), {"retry"}),
    "events held back": (
        Endpoint(holds_back=True), {"delivery", "fan-out"},
    ),
    "a payload with line breaks": (Endpoint(frame=_numbered("id: e-{0}\ndata: one\ntwo {0}\n\n")), {"fields"}),
    "an event without data": (
        Endpoint(frame=_numbered("event: empty\n\nid: e-{0}\nevent: thing\ndata: {0}\n\n")), {"data"},
    ),
    "bytes that are no text": (
        Endpoint(frame=lambda number: b"id: e-%d\ndata: \xff\xfe\n\n" % number), {"utf-8"},
    ),
    "no ids": (
        Endpoint(frame=_numbered("data: {0}\n\n")), {"ids", "resume", "resume-absence", "resume-splice"},
    ),
    "ids with spaces": (Endpoint(frame=_numbered("id: event number {0}\ndata: {0}\n\n")), {"id-characters"}),
    "one id for all": (
        Endpoint(frame=_numbered("id: same\ndata: {0}\n\n")),
        {"id-unique", "resume", "resume-absence", "resume-splice"},
    ),
    "a repetition": (Endpoint(replay_from=lambda cursor: cursor - 1), {"resume", "resume-absence", "resume-splice"}),
    "a gap": (Endpoint(replay_from=lambda cursor: cursor + 1), {"resume", "resume-absence", "resume-splice"}),
    "an error for an unknown cursor": (Endpoint(unknown_status=400), {"unknown-cursor"}),
    "no end": (Endpoint(ended_again_status=200), {"end-204"}),
    "a torn end": (Endpoint(end=b"id: e-2\ndata: torn"), {"whole-frames"}),
    "no HEAD": (Endpoint(head_status=405), {"head"}),
    "gzip that is not flushed": (Endpoint(compress="held"), {"gzip"}),
}  # fmt: skip
"""What is wrong with each, and exactly the checks that say so."""


def right(**changes: Any) -> Endpoint:
    """An endpoint that passes every check."""
    return replace(Endpoint(), **changes)
