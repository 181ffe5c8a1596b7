"""Applications that run for a test: really served, or started without a server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI

from asyncbg.testing import AppFailedError, LiveServer, ManualBG, serve, started

life: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_happened() -> None:
    life.clear()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
    """Tells when it begins and ends."""
    life.append("begun")
    yield {"name": "a part"}
    life.append("ended")


@asynccontextmanager
async def fails_at_start(_: FastAPI) -> AsyncIterator[None]:
    """Cannot begin."""
    raise RuntimeError("no database")
    yield


@asynccontextmanager
async def fails_at_end(_: FastAPI) -> AsyncIterator[None]:
    """Cannot end."""
    yield
    raise RuntimeError("cannot close")


async def test_an_application_is_served_until_the_block_ends() -> None:
    """It has started when the block begins, answers over TCP, and has ended after the block; the port is free then."""
    async with serve(FastAPI(lifespan=lifespan)) as live:
        assert life == ["begun"]
        async with aiohttp.ClientSession(live.url) as http, http.get("/openapi.json") as answer:
            assert answer.status == 200

    assert life == ["begun", "ended"]
    assert str(live) == live.url
    async with serve(FastAPI(), port=int(live.url.rpartition(":")[2])) as again:
        assert again.url == live.url


async def test_a_port_that_is_taken_is_told() -> None:
    """Nothing is started then."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with serve(FastAPI(lifespan=lifespan), port=taken.getsockname()[1]):
            pass

    assert life == []


async def test_an_application_that_does_not_start_is_told() -> None:
    """Served or only started; where there is no server, in its own words."""
    with pytest.raises(AppFailedError, match="log"):
        async with serve(FastAPI(lifespan=fails_at_start)):
            pass
    with pytest.raises(AppFailedError, match="no database"):
        async with started(FastAPI(lifespan=fails_at_start)):
            pass
    with pytest.raises(AppFailedError, match="cannot close"):
        async with started(FastAPI(lifespan=fails_at_end)):
            pass


async def test_a_lifespan_is_run_without_a_server() -> None:
    """Begun when the block begins, ended with it, also when the block raises."""
    async with started(FastAPI(lifespan=lifespan)):
        assert life == ["begun"]
    assert life == ["begun", "ended"]

    with pytest.raises(KeyError):
        async with started(FastAPI(lifespan=lifespan)):
            raise KeyError("of the test")
    assert life == ["begun", "ended"] * 2


async def test_an_application_without_a_lifespan_is_started_too() -> None:
    """ASGI allows an application to raise at once for a scope that it does not know."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError(scope["type"])

    async with started(app):
        pass


async def test_open_streams_do_not_hold_the_server_up(bg: ManualBG, bg_app: FastAPI) -> None:
    """They get their goodbye before the server waits for its connections; the engine goes on."""
    async with aiohttp.ClientSession() as http:
        async with serve(bg_app) as live:
            events = await http.get(f"{live.url}/bg/events")
            await events.content.readany()
        async with asyncio.timeout(10):
            assert b"event: stream.bye" in await events.content.read()

    assert bg.is_running
    assert not bg._parts.runner.is_draining


async def test_the_live_server_of_the_fixture(bg_live: LiveServer) -> None:
    """It has no slash at its end, so a path can be added."""
    async with aiohttp.ClientSession() as http, http.get(f"{bg_live.url}/bg/health/live") as answer:
        assert answer.status == 200
