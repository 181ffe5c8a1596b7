"""An app on a real database file, called in this process, and a look at its jobs from outside."""

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from asyncbg import AsyncBG, Job

ran: list[str] = []
"""What :func:`note` was called with in this test."""
jobs: list[Job] = []
"""The jobs that a test's routes have added."""


async def note(text: str) -> None:
    """A task that any test may hand over."""
    ran.append(text)


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()
    jobs.clear()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The database file of the test."""
    return tmp_path / "jobs.db"


@pytest.fixture
def make_bg(database: Path) -> Callable[..., AsyncBG]:
    """Make engines on the test's database: ``make_bg(runner={…})``."""

    def make(path: Path = database, **overrides: Any) -> AsyncBG:
        overrides.setdefault("runner", {"shutdown_grace_s": 1})
        return AsyncBG(database_url=f"sqlite:///{path}", data_dir=path.parent, **overrides)

    return make


@pytest.fixture
def bg(make_bg: Callable[..., AsyncBG]) -> AsyncBG:
    """An engine; the app's lifespan starts and stops it."""
    return make_bg()


@pytest.fixture
def app(bg: AsyncBG) -> FastAPI:
    """An app with the lifespan and the router."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")
    return app


Serve: TypeAlias = Callable[[FastAPI], Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start an app: ``http = await serve(app)``; it is stopped when the test is over."""
    async with AsyncExitStack() as stack:

        async def start(app: FastAPI) -> httpx.AsyncClient:
            return await stack.enter_async_context(client_of(app))

        yield start


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the app's lifespan and give a client that calls it."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.fixture
def stored(database: Path) -> Callable[[], list[str]]:
    """The tasks of the jobs that are on disk, in the order added, read by a connection of our own."""

    def read() -> list[str]:
        with closing(sqlite3.connect(database)) as connection:
            return [name for (name,) in connection.execute("SELECT task FROM job ORDER BY id")]

    return read


@pytest.fixture
def call() -> Callable[..., Any]:
    """Call an app by hand and look when each message is sent: ``await call(app, "/path", look)``."""

    async def request(app: FastAPI, path: str, look: Callable[[Message], None]) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            look(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        await app(scope, receive, send)

    return request


@pytest.fixture
def threads() -> Callable[[], set[str]]:
    """The names of the threads that were started since the test began and are still there."""
    before = set(threading.enumerate())

    def left() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread not in before and thread.is_alive()}

    return left
