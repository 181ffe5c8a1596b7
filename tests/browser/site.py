"""A real server behind a proxy that can be cut, and a log of what was asked of it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncbg import AsyncBG, Progress, current_job
from asyncbg.core.event import EventFilter
from asyncbg.settings import RunnerSettings, Settings, StreamSettings

_CSP = "default-src 'none'; script-src 'self'; connect-src 'self'"
_PAGE = '<!DOCTYPE html><meta charset="utf-8"><title>test</title>'


@dataclass
class Request:
    """A request that reached the server."""

    method: str
    path: str
    query: str
    cursor: str
    status: int = 0
    is_open: bool = True

    @property
    def is_stream(self) -> bool:
        """Whether it is for events as they happen."""
        return self.path.endswith("/events") and "follow=false" not in self.query


class RequestLog:
    """Middleware that keeps what was asked, and refuses streams while it is told to."""

    def __init__(self, app: ASGIApp, requests: list[Request], refuses: Callable[[Request], bool]) -> None:
        """Log the requests for ``app`` into ``requests``."""
        self._app = app
        self._requests = requests
        self._refuses = refuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Log, and serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cursor = dict(scope["headers"]).get(b"last-event-id", b"").decode()
        request = Request(scope["method"], scope["path"], scope["query_string"].decode(), cursor)
        self._requests.append(request)

        async def send_on(message: Message) -> None:
            request.status = message.get("status", request.status)
            await send(message)

        try:
            if self._refuses(request):
                await send_on({"type": "http.response.start", "status": 503, "headers": []})
                await send_on({"type": "http.response.body", "body": b""})
            else:
                await self._app(scope, receive, send_on)
        finally:
            request.is_open = False


class Proxy:
    """A TCP proxy whose connections can be cut."""

    def __init__(self, port: int) -> None:
        """Lead to ``port``."""
        self.port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Run; gives the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, as a lost network does."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
        else:
            self._writers.add(upstream)
            await asyncio.gather(_copy(reader, upstream), _copy(upstream_reader, writer))
            await _closed(upstream)
            self._writers.discard(upstream)
        await _closed(writer)
        self._writers.discard(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@dataclass
class Site:
    """A running application as a browser finds it."""

    database: Path
    settings: dict[str, Any]
    bg: AsyncBG = field(init=False)
    url: str = ""
    proxy: Proxy = field(init=False)
    requests: list[Request] = field(default_factory=list)
    refuses_streams: bool = False
    orders: dict[str, "asyncio.Queue[Any]"] = field(default_factory=dict)
    _server: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def start(self) -> int:
        """Serve, in a new life; gives the port."""
        self.bg = AsyncBG(
            Settings(
                database_url=f"sqlite:///{self.database}",
                stream=StreamSettings(**{"retry_ms": 50, **self.settings}),
                runner=RunnerSettings(shutdown_grace_s=0),
            )
        )
        self._register_task(self.bg)
        app = FastAPI(lifespan=self.bg.lifespan)
        app.include_router(self.bg.router, prefix="/bg")

        @app.get("/")
        async def show_page() -> HTMLResponse:
            return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _CSP})

        logged = RequestLog(app, self.requests, lambda request: self.refuses_streams and request.is_stream)
        return await self._server.enter_async_context(serving(logged, self.bg))

    async def stop(self) -> None:
        """End this life of the server."""
        await self._server.aclose()

    async def restart(self) -> None:
        """Stop, and serve again the same database behind the same address."""
        await self.stop()
        self.proxy.port = await self.start()

    async def submit(self, name: str = "a") -> str:
        """A job that does what it is ordered under that name."""
        self.orders[name] = asyncio.Queue()
        return (await self.bg.submit("obey", {"name": name}, owner="anonymous")).id

    def order(self, *orders: Any, name: str = "a") -> None:
        """A number is progress to report, a text an event to publish, None the end and an exception a failure."""
        for item in orders:
            self.orders[name].put_nowait(item)

    async def log(self, job_id: str) -> list[str]:
        """The ids of all stored events of a job."""
        wanted = EventFilter(jobs=frozenset({job_id}))
        events, _ = await self.bg.backend.events(after_seq=0, wanted=wanted, limit=1000)
        return [f"{self.bg.backend.epoch}-{event.seq}" for event in events]

    @property
    def streams(self) -> list[Request]:
        """The requests for streams so far."""
        return [request for request in self.requests if request.is_stream]

    @property
    def open_streams(self) -> list[Request]:
        """Those that are open now."""
        return [request for request in self.streams if request.is_open]

    def _register_task(self, bg: AsyncBG) -> None:
        @bg.task(name="obey", retries=0)
        async def obey(name: str, progress: Progress = Progress()) -> str:
            while (order := await self.orders[name].get()) is not None:
                match order:
                    case int():
                        progress.set(order, total=10, message=f"step {order}")
                    case str():
                        await current_job().publish("thing.done", {"name": order})
                    case _:
                        raise order
            return "done"


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, bg: AsyncBG) -> AsyncIterator[int]:
    """Run ``app`` on a real server; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
        assert not task.done(), "the server did not start"
    try:
        yield listener.getsockname()[1]
    finally:
        bg._streams.drain()
        server.should_exit = True
        await task
        listener.close()
