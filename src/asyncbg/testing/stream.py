"""An in-process client for endless streams, which httpx's ASGITransport cannot read: it waits for the whole body."""

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from asyncbg.testing.frames import Frame, FrameParser

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
_TIMEOUT_S = 10.0
_RELEASE_S = 5.0
_MOST_CHUNKS = 256


class EventReader:
    """Reader of a response as an event stream: iterate over its events, or request the next one.

    ``last_event_id`` and ``retry_ms`` are the values that an EventSource keeps.
    """

    def __init__(self, status: int, headers: Mapping[str, str], receive: Callable[[], Awaitable[bytes]]) -> None:
        """Read from ``receive``, which returns the next bytes, ``b""`` at the end. Header names are in lower case."""
        self.status = status
        self.headers = headers
        self.raw = bytearray()
        """All received bytes of the body, decompressed."""
        self.is_ended = False
        self.is_released: bool | None = None
        """After closing: whether the application stopped on the disconnect; None if unknown."""
        self._receive = receive
        self._parser = FrameParser()
        self._last_event_id = ""
        self._frames: deque[Frame] = deque()
        self._inflate = zlib.decompressobj(wbits=31) if headers.get("content-encoding") == "gzip" else None

    @property
    def last_event_id(self) -> str:
        """Return the cursor for a reconnect."""
        return self._last_event_id

    @property
    def retry_ms(self) -> int | None:
        """Return the reconnection time in milliseconds."""
        return self._parser.retry_ms

    @property
    def has_rest(self) -> bool:
        """Whether the last block is incomplete."""
        return self._parser.has_rest

    async def chunk(self) -> bytes:
        """Return the next bytes, ``b""`` at the end; do not mix with reading events."""
        data = await self._receive()
        if not data:
            self.is_ended = True
        elif self._inflate is not None:
            data = self._inflate.decompress(data) or await self.chunk()
        self.raw += data
        return data

    async def frame(self) -> Frame | None:
        """Return the next block, with or without an event; None at the end."""
        while not self._frames:
            if not await self._read_on():
                return None
        frame = self._frames.popleft()
        self._track_id([frame])
        return frame

    async def greeting(self, timeout_s: float = _TIMEOUT_S) -> list[Frame]:
        """Return the blocks of the first bytes, after which the stream is subscribed; empty on timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._read_on()
        except TimeoutError:
            return []
        found = list(self._frames)
        self._frames.clear()
        self._track_id(found)
        return found

    async def comment(self) -> bool:
        """Wait for the next comment. Return False if the stream ends first."""
        before = self._parser.comments
        while await self._read_on():
            if self._parser.comments > before:
                return True
        return False

    async def _read_on(self) -> bool:
        data = await self.chunk()
        self._frames.extend(self._parser.feed(data))
        return bool(data)

    def _track_id(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            if frame.id is not None:
                self._last_event_id = frame.id

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Yield every event until the stream ends."""
        while (frame := await self.frame()) is not None:
            if frame.is_event:
                yield frame

    async def next(self, event: str = "", *, timeout_s: float = _TIMEOUT_S) -> Frame:
        """Return the next event, or the next of that type. Raises TimeoutError, EOFError at the end of the stream."""
        wanted = event or "another event"
        try:
            async with asyncio.timeout(timeout_s) as limit:
                async for frame in self:
                    if not event or frame.event == event:
                        return frame
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"the stream did not send {wanted} within {timeout_s:g} s") from None
        raise EOFError(f"the stream has ended without {wanted}")


@asynccontextmanager
async def stream(
    app: ASGIApp,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    last_event_id: str | None = None,
    timeout_s: float = _TIMEOUT_S,
    release_s: float = _RELEASE_S,
) -> AsyncIterator[EventReader]:
    """Open a stream of an application in this process; the client disconnects when the block ends.

    An application that runs ``release_s`` longer is cancelled, and ``is_released`` is False.

    ``path`` may have a query. The application must have started: by the fixture ``bg_live``, by
    ``async with started(app)``, or not at all if it needs no lifespan. Raises the errors of the application, and
    TimeoutError if it does not respond within ``timeout_s``.
    """
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not a path: it must begin with a slash, as in '/events?type=job.*'")
    sent = {"accept": "text/event-stream", "host": "test"} | {k.lower(): v for k, v in (headers or {}).items()}
    if last_event_id is not None:
        sent["last-event-id"] = last_event_id
    exchange = _Exchange(app, _scope(method, path, sent), release_s)
    try:
        async with asyncio.timeout(timeout_s):
            reader = await exchange.start()
    except BaseException:
        await exchange.disconnect()
        raise
    try:
        yield reader
    finally:
        reader.is_released = await exchange.disconnect()
    exchange.check()


@dataclass(slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]


class _Exchange:
    """One request and its response, with backpressure as on a socket."""

    def __init__(self, app: ASGIApp, scope: Mapping[str, Any], release_s: float) -> None:
        self._app = app
        self._scope = scope
        self._release_s = release_s
        self._answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue(_MOST_CHUNKS)
        self._disconnected = asyncio.Event()
        self._is_request_sent = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> EventReader:
        self._task = asyncio.create_task(self._run(), name=f"stream {self._scope['path']}")
        answer = await self._answer
        return EventReader(answer.status, answer.headers, self._next)

    async def disconnect(self) -> bool:
        """Disconnect. Return whether the application stopped; otherwise it is cancelled."""
        if self._task is None:
            return True
        self._disconnected.set()
        while not self._chunks.empty():
            self._chunks.get_nowait()
        _, pending = await asyncio.wait([self._task], timeout=self._release_s)
        if pending:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=self._release_s)
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # mark as retrieved: check() raises it
        return not pending

    def check(self) -> None:
        """Raise the error of the application, if any."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        try:
            await self._app(dict(self._scope), self._receive, self._send)
        except BaseException as error:
            if not self._answer.done():
                self._answer.set_exception(error)
                return
            raise
        finally:
            await self._put(b"")
        if not self._answer.done():
            self._answer.set_exception(RuntimeError("the application returned without a response"))

    async def _next(self) -> bytes:
        chunk = await self._chunks.get()
        if not chunk:
            self.check()
            self._chunks.put_nowait(b"")  # later reads return the end too
        return chunk

    async def _receive(self) -> dict[str, Any]:
        if not self._is_request_sent:
            self._is_request_sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and not self._answer.done():
            names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}
            self._answer.set_result(_Answer(message["status"], names))
        elif message["type"] == "http.response.body":
            if body := message.get("body", b""):
                await self._put(bytes(body))
            if not message.get("more_body", False):
                await self._put(b"")

    async def _put(self, chunk: bytes) -> None:
        """Queue a chunk; after a disconnect it is dropped, as in uvicorn, and other tasks may run."""
        if self._disconnected.is_set():
            await asyncio.sleep(0)
        else:
            await self._chunks.put(chunk)


def _scope(method: str, path: str, headers: Mapping[str, str]) -> Mapping[str, Any]:
    parts = urlsplit(path)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(parts.path),
        "raw_path": quote(parts.path, safe="/%").encode(),
        "root_path": "",
        "query_string": parts.query.encode(),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("test", 80),
        "state": {},
    }
