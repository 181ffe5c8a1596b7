"""What one connection may ask: bounds on a request's head, a time for it, and no request that reads in two ways."""

import asyncio
import json
import logging
import re
import resource
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from starlette.types import Receive, Scope, Send

from asyncbg.service.connection_limits import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    BoundedProtocol,
    connection_limits,
)
from asyncbg.settings import StreamSettings
from asyncbg.testing import LiveServer, serve


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path and the length of the body."""
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    text = f"{scope['path']} {length}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


class Impatient(BoundedProtocol):
    """The same with hardly any time."""

    head_s: ClassVar[float] = 0.05
    body_idle_s: ClassVar[float] = 0.05


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    """A server with the options of ``asyncbg serve``."""
    async with serve(echo, **connection_limits(StreamSettings())) as server:
        yield server


async def talk(live: LiveServer, *pieces: bytes) -> bytes:
    """Send, and read until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(live.url.rpartition(":")[2]))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head(*lines: str, start: str = "GET / HTTP/1.1") -> bytes:
    """A request's head that asks for the connection to be closed."""
    return "\r\n".join([start, "Host: service", "Connection: close", *lines, "", ""]).encode()


async def test_an_ordinary_request_is_answered(live: LiveServer) -> None:
    """Also one with the largest body in the smallest pieces."""
    pieces = [head("Content-Length: 300000", start="POST /here HTTP/1.1"), *[b"x" * 30_000] * 10]

    assert (await talk(live, *pieces)).endswith(b"/here 300000")


async def test_a_chunked_body_is_no_head(live: LiveServer) -> None:
    """However many chunks there are."""
    body = b"".join(b"3e8\r\n" + b"y" * 1000 + b"\r\n" for _ in range(200)) + b"0\r\n\r\n"

    assert (await talk(live, head("Transfer-Encoding: chunked", start="POST / HTTP/1.1"), body)).endswith(b"/ 200000")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(*[f"X-{number}: y" for number in range(MAX_HEADERS + 1)]), 431),
        (head(f"X: {'y' * MAX_HEAD_BYTES}"), 431),
        (head(*[f"X-{number}: {'y' * 1000}" for number in range(90)]), 431),
        (head(start=f"GET /{'y' * MAX_URL_BYTES} HTTP/1.1"), 414),
        (head()[:-2] + b"X: " + b"y" * (MAX_HEAD_BYTES + 1), 431),
    ],
    ids=["many headers", "a large header", "large headers", "a long address", "an endless header"],
)
async def test_a_head_too_large_is_refused(live: LiveServer, request_head: bytes, status: int) -> None:
    """With a problem document that repeats nothing of it; the connection ends."""
    answer = await talk(live, request_head)

    start, _, body = answer.partition(b"\r\n\r\n")
    assert start.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"content-type: application/problem+json" in start
    assert b"x-content-type-options: nosniff" in start
    assert json.loads(body)["status"] == status
    assert b"yyy" not in answer


async def test_trailers_are_bounded_too(live: LiveServer) -> None:
    """What follows a chunked body counts as headers do."""
    start = head("Transfer-Encoding: chunked", start="POST / HTTP/1.1")
    trailers = b"".join(b"X-%d: y\r\n" % number for number in range(MAX_HEADERS + 1))

    answer = await talk(live, start + b"1\r\nz\r\n0\r\n" + trailers)

    assert b" 200 " not in answer


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: +5",),
        ("Content-Length: 5, 5",),
        ("Content-Length : 5",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("X: a\r\n Content-Length: 5",),
        ("X\0: y",),
        ("X: a\rY: b",),
        ("Host: other",),
        ("host: service",),
    ],
)
async def test_a_request_that_reads_in_two_ways_is_refused(live: LiveServer, lines: tuple[str, ...]) -> None:
    """A proxy before us might see another request in the same bytes (RFC 9112, 11.2): 400, and the connection ends."""
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: service\r\n\r\n"

    answer = await talk(live, head(*lines, start="POST / HTTP/1.1") + smuggled)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"/smuggled" not in answer


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", head()[:-2], head("Content-Length: 5", start="POST / HTTP/1.1") + b"ab"],
    ids=["nothing", "half a line", "no end", "half a body"],
)
async def test_what_does_not_come_is_not_waited_for(sent: bytes) -> None:
    """A connection that sends no whole request is closed; what it holds is free for others."""
    async with serve(echo, http=Impatient) as live:
        assert await talk(live, sent) == b""


async def test_an_open_stream_is_not_hurried() -> None:
    """Only the head has to come in time: an answer takes as long as it takes."""
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            asked.set()
            await release.wait()
            await echo(scope, receive, send)

    async with serve(slow, http=Impatient) as live:
        answer = asyncio.create_task(talk(live, head()))
        await asked.wait()
        asyncio.get_running_loop().call_later(3 * Impatient.head_s, release.set)

        assert (await answer).endswith(b"/ 0")


async def test_a_body_that_is_taken_slowly_is_not_hurried() -> None:
    """Where the application does not read, nothing can come: that is not the client's fault."""
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            asked.set()
            await release.wait()
            await echo(scope, receive, send)

    async with serve(slow, http=Impatient) as live:
        request = [head("Content-Length: 3000000", start="POST / HTTP/1.1"), *[b"x" * 300_000] * 10]
        answer = asyncio.create_task(talk(live, *request))
        await asked.wait()
        asyncio.get_running_loop().call_later(5 * Impatient.body_idle_s, release.set)

        assert (await answer).endswith(b"/ 3000000")


async def test_more_connections_than_there_is_room_for_are_refused() -> None:
    """Each stream takes one, and there are a thousand for everything else."""
    assert connection_limits(StreamSettings(max_subscribers=7))["limit_concurrency"] == 1_007


async def test_a_request_names_its_host(live: LiveServer) -> None:
    """HTTP/1.1 without one is 400; HTTP/1.0 knew none (RFC 9112, 3.2)."""
    assert (await talk(live, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert b" 200 " in (await talk(live, b"GET / HTTP/1.0\r\n\r\n"))[:20]


async def test_who_sends_nothing_makes_room() -> None:
    """A connection without a request is closed for one more, the oldest first, so idle ones keep nobody out."""
    options = {**connection_limits(StreamSettings()), "limit_concurrency": 4}
    async with serve(echo, **options) as server:
        port = int(server.url.rpartition(":")[2])
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        try:
            for _ in range(3):
                assert b" 200 " in await talk(server, head())
            async with asyncio.timeout(10):
                assert {await reader.read() for reader, _ in idle[:10]} == {b""}
        except ConnectionError:
            pass  # closed all the same
        finally:
            for _, writer in idle:
                writer.close()


async def test_where_all_are_busy_one_more_is_told_to_come_back() -> None:
    """503 as a problem document with Retry-After, also for one that sends a body; who is served goes on."""
    entered, release = asyncio.Semaphore(0), asyncio.Event()

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            entered.release()
            await release.wait()
            await echo(scope, receive, send)

    options = {**connection_limits(StreamSettings()), "limit_concurrency": 2}
    async with serve(busy, **options) as live:
        served = [asyncio.create_task(talk(live, head())) for _ in range(2)]
        for _ in served:
            await entered.acquire()
        refused = [await talk(live, head())]
        body = [b"x" * 30_000] * 100
        refused.append(await talk(live, head("Content-Length: 3000000", start="POST / HTTP/1.1"), *body))
        release.set()

        assert {(await answer).rpartition(b"\r\n")[2] for answer in served} == {b"/ 0"}
    for answer in refused:
        start, _, document = answer.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 503 ")
        assert b"content-type: application/problem+json\r\n" in start
        assert re.search(rb"\r\nretry-after: [1-9]", start)
        assert json.loads(document)["detail"] == "all connections of the service are in use; try again"


@pytest.mark.parametrize("length", ["Content-Length: 300000", "Transfer-Encoding: chunked"])
async def test_a_body_that_a_shutdown_cuts_is_answered(length: str) -> None:
    """503 as a problem document with Retry-After, though the client still sends; the application sees it leave."""
    begun, left = asyncio.Event(), asyncio.Event()

    async def taking(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive())["type"] != "http.disconnect":
            begun.set()
        left.set()

    async with serve(taking, **connection_limits(StreamSettings())) as live:
        answer = asyncio.create_task(talk(live, head(length, start="POST / HTTP/1.1"), b"3\r\nabc\r\n"))
        await begun.wait()

    start, _, document = (await answer).partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 503 ")
    assert re.search(rb"\r\nretry-after: [1-9]", start)
    assert json.loads(document)["detail"].startswith("the service stopped before the whole request had come")
    assert left.is_set()


async def test_a_body_that_comes_in_time_is_served() -> None:
    """A shutdown waits a moment for what is on its way."""
    begun = asyncio.Event()

    async def taking(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            begun.set()
            await echo(scope, receive, send)

    async with serve(taking, **connection_limits(StreamSettings())) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(live.url.rpartition(":")[2]))
        writer.write(head("Content-Length: 6", start="POST / HTTP/1.1") + b"abc")
        await begun.wait()
        asyncio.get_running_loop().call_later(0.2, writer.write, b"def")

    assert (await reader.read()).endswith(b"/ 6")
    writer.close()


def test_that_no_descriptor_is_left_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio says it for every connection that waits; what else asyncio says is logged each time."""
    connection_limits(StreamSettings())
    asyncios = logging.getLogger("asyncio")

    def say(message: str, second: float) -> None:
        record = asyncios.makeRecord("asyncio", logging.ERROR, "", 0, message, (), None)
        record.created = 4e9 + second
        asyncios.handle(record)

    for second in (0, 0.1, 1, 59, 61, 62):
        say("socket.accept() out of system resource\nsocket: <a socket>", second)
        say("something else", second)

    said = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert len([line for line in said if line.startswith("socket.accept()")]) == 2
    assert said.count("something else") == 6


def test_connections_leave_descriptors_for_the_rest() -> None:
    """The soft limit is raised to the hard one, and the connections stay below it."""
    most = connection_limits(StreamSettings(max_subscribers=100_000))["limit_concurrency"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    assert soft == hard
    assert hard == resource.RLIM_INFINITY or most < hard
