"""Running applications for tests: on a real server, or with only their lifespan in this process."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from asyncbg.fastapi import AsyncBG
from asyncbg.testing.stream import ASGIApp

_START_S = 20.0


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A running server; ``url`` has no trailing slash."""

    url: str
    app: ASGIApp

    def __str__(self) -> str:
        """Return the URL."""
        return self.url


class AppFailedError(RuntimeError):
    """The application did not start or stop; the log has its traceback."""


class _Server(uvicorn.Server):
    """uvicorn server with an event that is set when startup has succeeded or failed."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.tried = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # raised by uvicorn if the application does not start
            self.should_exit = True
        finally:
            self.tried.set()


@asynccontextmanager
async def serve(app: ASGIApp, *, port: int = 0, **config: Any) -> AsyncIterator[LiveServer]:
    """Serve ``app`` with uvicorn on 127.0.0.1 in this process until the block ends; port 0 is a free port.

    ``config`` is passed to ``uvicorn.Config``. At the end, the engine of the application closes its streams first, so
    that the server does not wait for them. Raises AppFailedError if the application does not start, OSError if the
    port is in use.
    """
    plain: dict[str, Any] = {"log_level": "warning", "log_config": None, "timeout_graceful_shutdown": 2, "ws": "none"}
    server = _Server(uvicorn.Config(app, **plain | config))
    with _listener(port) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]), name="asyncbg-testing-server")
        tried = asyncio.create_task(server.tried.wait())
        try:
            await asyncio.wait([tried, task], timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
            if not server.started:
                raise AppFailedError("the application did not start; the log of uvicorn.error has the reason")
            yield LiveServer(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
        finally:
            engine = getattr(getattr(app, "state", None), "asyncbg", None)
            if isinstance(engine, AsyncBG):
                engine._begin_shutdown()
            server.should_exit = True
            tried.cancel()
            await task


def _listener(port: int) -> socket.socket:
    """Return a listening socket, so that early clients wait for the server."""
    # asyncio sets TCP_NODELAY only if the protocol is given
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1_024)
    except OSError:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def started(app: ASGIApp) -> AsyncIterator[ASGIApp]:
    """Run the lifespan of ``app`` (ASGI's lifespan protocol, version 2.0) without a server, until the block ends.

    Raises AppFailedError with the application's message if it does not start or stop.
    """
    lifespan = _Lifespan(app)
    try:
        await lifespan.send("startup")
        try:
            yield app
        finally:
            await lifespan.send("shutdown")
    finally:
        await lifespan.end()


class _Lifespan:
    """One lifespan of an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._to_app: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(2)
        self._from_app: deque[Mapping[str, Any]] = deque()
        self._has_message = asyncio.Event()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.ensure_future(app(scope, self._to_app.get, self._receive))

    async def send(self, what: str) -> None:
        """Send startup or shutdown and wait for the response; an application that raises at once has no lifespan."""
        if self._task.done():
            return
        self._to_app.put_nowait({"type": f"lifespan.{what}"})
        waiting = asyncio.create_task(self._has_message.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self._has_message.clear()
        if not self._from_app:
            return
        answer = self._from_app.popleft()
        if answer["type"] == f"lifespan.{what}.failed":
            raise AppFailedError(f"the {what} of the application failed:\n{answer.get('message', '')}")

    async def _receive(self, message: Mapping[str, Any]) -> None:
        self._from_app.append(message)
        self._has_message.set()

    async def end(self) -> None:
        """Cancel the lifespan task and wait for it; its error has been reported."""
        if not self._task.done():
            self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()
