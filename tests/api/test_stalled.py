"""Clients that stop to read, over a real server: they are closed, cost the others nothing and hold up no shutdown."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from fastapi import FastAPI

from asyncbg import AsyncBG, current_job

SOON_S = 30
SMALL = 4_096
MANY = 2_000
"""Events: much more than kernel and server hold for a client."""


class Peer(asyncio.Protocol):
    """A client of ``/events`` that reads until it is told not to."""

    def __init__(self) -> None:
        """Not connected yet."""
        self.heard = bytearray()
        self.opened = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self.heard += data
        if b"retry: " in self.heard:
            self.opened.set()

    @property
    def taken(self) -> int:
        """How many events came."""
        return self.heard.count(b"event: thing.done\n")


@dataclass
class Service:
    """A server whose kernel holds little for each client, and its application."""

    bg: AsyncBG
    server: uvicorn.Server
    serving: "asyncio.Task[None]"
    address: tuple[str, int]

    async def open(self, stack: contextlib.AsyncExitStack) -> Peer:
        """Open a stream."""
        peer = Peer()
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(end, self.address)
        await loop.create_connection(lambda: peer, sock=end)
        stack.callback(peer.transport.abort)
        await asyncio.wait_for(peer.opened.wait(), SOON_S)
        return peer

    async def publish(self, count: int) -> None:
        """Have a job tell so many events."""
        await (await self.bg.submit("announce", {"count": count}, owner="anonymous")).result(SOON_S)

    @property
    def held(self) -> list[int]:
        """For each connection there is, how many bytes of it wait in the server."""
        connections = [cast("Any", connection) for connection in self.server.server_state.connections]
        return [connection.transport.get_write_buffer_size() for connection in connections]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A running one."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/asyncbg.db", runner={"watchdog_s": 0})

    @bg.task
    async def announce(count: int) -> None:
        await asyncio.gather(*(current_job().publish("thing.done", {"n": n}) for n in range(count)))

    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)  # those it accepts inherit it
        listener.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield Service(bg, server, serving, listener.getsockname())
        finally:
            bg._begin_shutdown()
            server.should_exit = True
            await serving


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task of this process brings about."""
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - seen from outside, there is no event to await
            await asyncio.sleep(0.005)


async def test_stalled_clients_are_closed_and_the_others_get_everything(service: Service) -> None:
    """Whoever takes nothing loses its connection, buffers and all; nobody else notices."""
    service.bg._streams.send_timeout_s = 1.0
    async with contextlib.AsyncExitStack() as stack:
        peers = [await service.open(stack) for _ in range(5)]
        for stalled in peers[:2]:
            stalled.transport.pause_reading()
        await service.publish(MANY)
        await until(lambda: all(peer.taken == MANY for peer in peers[2:]))
        await until(lambda: service.bg._streams.statistics().open == 3)

        assert service.bg._streams.statistics().stalled == 2
        await until(lambda: len(service.held) == 3)


@pytest.mark.parametrize("is_full", [False, True], ids=["a goodbye that waits", "a send that waits"])
async def test_a_stalled_client_holds_up_no_shutdown(service: Service, is_full: bool) -> None:
    """Its connection is ended with its stream, whether or not the server could take the goodbye."""
    async with contextlib.AsyncExitStack() as stack:
        peer = await service.open(stack)
        peer.transport.pause_reading()
        while not any(service.held):
            await service.publish(MANY if is_full else 5)
        service.bg._begin_shutdown()
        service.server.should_exit = True

        await asyncio.wait_for(asyncio.shield(service.serving), SOON_S)
