"""The pytest plugin: fixtures named ``bg…``. Installed with the package; ``-p no:asyncbg`` disables it.

The fixtures are asynchronous: run the tests with pytest-asyncio, in either of its modes, or with anyio's plugin.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from asyncbg.core.clock import ManualClock
from asyncbg.testing.engine import ManualBG
from asyncbg.testing.peers import SmtpSink, WebPeer
from asyncbg.testing.server import LiveServer, serve

try:  # this decorator works in both modes
    from pytest_asyncio import fixture as async_fixture
except ModuleNotFoundError:
    async_fixture = pytest.fixture  # type: ignore[assignment]  # anyio's plugin accepts a plain fixture


@pytest.fixture
def bg_clock() -> ManualClock:
    """The clock of ``bg``, which advances only when it is moved: ``bg_clock.advance(minutes=5)``."""
    return ManualClock()


@pytest.fixture
def bg_settings(tmp_path: Path) -> dict[str, Any]:
    """The settings of ``bg``, among them its own database file. Override it to change settings."""
    return {
        "database_url": f"sqlite:///{tmp_path}/asyncbg.db",
        "data_dir": tmp_path / "asyncbg-data",
        "runner": {"shutdown_grace_s": 0, "watchdog_s": 0},
    }


@async_fixture
async def bg(bg_settings: dict[str, Any], bg_clock: ManualClock) -> AsyncIterator[ManualBG]:
    """A running AsyncBG on its own database file; jobs run when the test awaits ``bg.drain()``."""
    async with ManualBG(clock=bg_clock, **bg_settings) as engine:
        yield engine


@pytest.fixture
def bg_app(bg: ManualBG) -> FastAPI:
    """The application that ``bg_live`` serves: the routes of ``bg`` under ``/bg``. Override it with your own."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")
    return app


@async_fixture
async def bg_live(bg_app: FastAPI) -> AsyncIterator[LiveServer]:
    """``bg_app`` on a real server on a free port: ``bg_live.url``."""
    async with serve(bg_app) as server:
        yield server


@async_fixture
async def bg_smtp() -> AsyncIterator[SmtpSink]:
    """A mail server on a free port: ``bg_smtp.port``, ``bg_smtp.messages``. Needs aiosmtpd."""
    try:
        async with SmtpSink().running() as sink:
            yield sink
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("aiosmtpd"):
            raise
        pytest.fail(str(error), pytrace=False)


@async_fixture
async def bg_web() -> AsyncIterator[WebPeer]:
    """A web server on a free port with configured answers: ``bg_web.url``, ``.answers``, ``.requests``."""
    async with WebPeer().running() as peer:
        yield peer
