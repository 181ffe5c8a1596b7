"""Clients whose pauses take no time and are written down, and a real service to talk to."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from asyncbg.client import Client
from asyncbg.core.clock import ManualClock
from asyncbg.engine.context import current_job
from asyncbg.engine.progress import Progress
from asyncbg.errors import FinalError
from asyncbg.fastapi import AsyncBG
from asyncbg.settings import RunnerSettings, Settings, StreamSettings
from asyncbg.testing import serve

TIMEOUT_S = 30


@dataclass
class Pauses:
    """A sleep that only moves a clock; ``seen`` are the seconds that were asked for."""

    clock: ManualClock = field(default_factory=ManualClock)
    seen: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        """Note the pause; let others run."""
        self.seen.append(seconds)
        self.clock.advance(seconds=seconds)
        await asyncio.sleep(0)


class Longest(random.Random):
    """No chance at all: every draw is the largest there can be."""

    def uniform(self, a: float, b: float) -> float:
        """The upper end."""
        return b


@pytest.fixture
def pauses() -> Pauses:
    """The pauses of the test's clients."""
    return Pauses()


Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
async def connect(pauses: Pauses) -> AsyncIterator[Connect]:
    """Make clients that are open, and are closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_client(url: str, **options: Any) -> Client:
            client = Client(url, **{"clock": pauses.clock, "sleep": pauses.sleep, "rng": Longest(), **options})
            return await stack.enter_async_context(client)

        yield open_client


@dataclass
class Service:
    """A real application that can be stopped and started again on the same port and database."""

    directory: Path
    port: int
    options: dict[str, Any]
    bg: AsyncBG | None = None
    runs: int = 0

    @property
    def url(self) -> str:
        """Where the library's routes are."""
        return f"http://127.0.0.1:{self.port}/bg"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AsyncBG]:
        """Run until the block ends; then every stream gets its goodbye."""
        settings = Settings(
            database_url=f"sqlite:///{self.directory}/asyncbg.db",
            stream=StreamSettings(**self.options),
            runner=RunnerSettings(shutdown_grace_s=0),
        )
        self.bg = bg = AsyncBG(settings)
        register_tasks(bg, self)
        app = FastAPI(lifespan=bg.lifespan)
        app.include_router(bg.router, prefix="/bg")
        async with serve(app, port=self.port) as live:
            self.port = int(live.url.rpartition(":")[2])
            yield bg


def register_tasks(bg: AsyncBG, service: Service) -> None:
    """Tasks that add, fail, wait for ever, and tell much."""

    @bg.task(name="add")
    async def add(a: int, b: int = 0) -> int:
        service.runs += 1
        return a + b

    @bg.task(name="fail")
    async def fail() -> None:
        raise FinalError("no use")

    @bg.task(name="hold")
    async def hold(progress: Progress = Progress()) -> None:
        progress.set(1, total=2, message="half")
        await asyncio.Event().wait()

    @bg.task(name="announce")
    async def announce(count: int) -> None:
        for n in range(count):
            await current_job().publish("thing.done", {"n": n})


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A running service with fast heartbeats and short reconnection times."""
    service = Service(tmp_path, 0, {"retry_ms": 100, "heartbeat_s": 1})
    async with service.running():
        yield service
