"""The in-process client of streams: it reads while the application writes, and leaves as a client does."""

import asyncio
import itertools
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from asyncbg.testing import stream
from asyncbg.testing.frames import FrameParser

app = FastAPI()


@app.get("/endless")
async def endless() -> StreamingResponse:
    """Counts for ever."""

    async def numbers() -> AsyncIterator[str]:
        for number in itertools.count():
            yield f"id: {number}\ndata: {number}\n\n"

    return StreamingResponse(numbers(), media_type="text/event-stream")


@app.get("/echo")
async def echo(request: Request, text: str = "") -> Response:
    """What came in the query and the headers, as one event, and the end."""
    data = f"{text} {request.headers.get('last-event-id')} {request.headers['accept']}"
    return Response(f"data: {data}\n\n", media_type="text/event-stream")


@app.get("/failing")
async def failing() -> StreamingResponse:
    """Breaks after the first event."""

    async def one() -> AsyncIterator[str]:
        yield "data: first\n\n"
        raise RuntimeError("broken")

    return StreamingResponse(one(), media_type="text/event-stream")


async def test_an_endless_stream_is_read_as_it_comes() -> None:
    """The block ends the stream; nothing is buffered to its end, which never comes."""
    async with stream(app, "/endless") as events:
        assert events.status == 200
        assert events.headers["content-type"] == "text/event-stream; charset=utf-8"
        read = []
        async for frame in events:
            read.append(frame.data)
            if len(read) == 1_000:
                break

    assert read == [str(number) for number in range(1_000)]
    assert events.is_released


async def test_query_and_headers_arrive() -> None:
    """A path may have a query, escaped; a cursor is the Last-Event-ID header."""
    async with stream(app, "/echo?text=a%20b", last_event_id="e-7") as events:
        assert (await events.next()).data == "a b e-7 text/event-stream"
        with pytest.raises(EOFError, match="ended"):
            await events.next()


async def test_a_wait_says_what_it_waited_for() -> None:
    """The error of ``next`` names the event; a path without a slash is refused."""

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass

    async with stream(silent, "/") as events:
        with pytest.raises(TimeoutError, match=r"did not send job\.queued within"):
            await events.next("job.queued", timeout_s=0.01)
    with pytest.raises(ValueError, match="slash"):
        async with stream(silent, "events"):
            pass


async def all_of(path: str) -> list[str]:
    """What a stream has to say."""
    async with stream(app, path) as events:
        return [frame.data async for frame in events]


async def test_what_the_application_raises_is_raised_here() -> None:
    """Before its answer, and in the middle of its stream."""
    with pytest.raises(RuntimeError, match="broken"):
        await all_of("/failing")

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("no answer")

    with pytest.raises(KeyError, match="no answer"):
        async with stream(refuses, "/"):
            pass


async def test_an_application_without_an_answer_is_told() -> None:
    """One that returns without a response, and one that never answers."""

    async def returns(scope: Scope, receive: Receive, send: Send) -> None: ...

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="without a response"):
        async with stream(returns, "/"):
            pass
    with pytest.raises(TimeoutError):
        async with stream(waits, "/", timeout_s=0.05, release_s=0.05):
            pass


async def test_an_application_that_ignores_the_disconnect_is_cancelled() -> None:
    """Leaving takes no longer than ``release_s``, and the reader tells that the application had not let go."""
    cancelled = asyncio.Event()

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with stream(deaf, "/", release_s=0.05) as events:
        pass

    assert events.is_released is False
    assert cancelled.is_set()


async def test_gzip_is_read_as_it_comes() -> None:
    """Compressed blocks are given as soon as they are flushed."""
    goes_on = asyncio.Event()

    async def compressed(scope: Scope, receive: Receive, send: Send) -> None:
        squeeze = zlib.compressobj(wbits=31)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-encoding", b"gzip")]})
        for text in (b"data: one\n\n", b"data: two\n\n"):
            body = squeeze.compress(text) + squeeze.flush(zlib.Z_SYNC_FLUSH)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await goes_on.wait()

    async with stream(compressed, "/") as events:
        assert (await events.next()).data == "one"
        goes_on.set()
        assert (await events.next()).data == "two"


def parse(*chunks: bytes) -> list[Any]:
    """The event, the data and the id of every block."""
    parser = FrameParser()
    frames = [frame for chunk in chunks for frame in parser.feed(chunk)]
    return [(frame.event, frame.data, frame.id) for frame in frames]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 1_000])
def test_lines_end_in_three_ways_wherever_the_pieces_do(end: bytes, size: int) -> None:
    """LF, CR and CRLF mean the same, also where a piece ends within one, or within a character (WHATWG 9.2.5)."""
    text = end.join(["\ufeffevent: grüße".encode(), b"data: one", b"data:two", b"id: 7", b"", b"data", b""]) + end

    chunks = [text[at : at + size] for at in range(0, len(text), size)]

    assert parse(*chunks) == [("grüße", "one\ntwo", "7"), ("", "", None)]


def test_what_means_nothing_is_kept_to_be_told() -> None:
    """Comments and unknown lines are there for who looks at the manners of a stream."""
    parser = FrameParser()
    [frame] = parser.feed(b": hello\nfoo: bar\nstray\nretry: 5\n\n")

    assert (frame.comments, frame.unknown, frame.retry) == (("hello",), ("foo: bar", "stray"), "5")
    assert not frame.is_event
    assert not parser.has_rest
    parser.feed(b"data: torn")
    assert parser.has_rest


@pytest.mark.parametrize(
    ("text", "dispatched"),
    [
        (b"data:\n\n", [""]),  # WHATWG 9.2.6: one line of data, though empty, makes an event
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"id: 7\n\nevent: x\n\nretry: 5\n\n: hello\n\n", []),
    ],
)
def test_an_event_is_what_an_event_source_dispatches(text: bytes, dispatched: list[str]) -> None:
    """A block with a line of data, and no other."""
    assert [frame.data for frame in FrameParser().feed(text) if frame.is_event] == dispatched


@pytest.mark.parametrize("value", ["soon", "", "-1", "1.5", "+5", "5 s", "1e3", "\u0661"])
def test_a_time_that_is_none_is_ignored(value: str) -> None:
    """The time that was told before stays; the line is kept to be told."""
    parser = FrameParser()
    [frame] = parser.feed(f"retry: 7\nretry: {value}\n\n".encode())

    assert (frame.retry, parser.retry_ms, frame.unknown) == ("7", 7, (f"retry: {value}",))


def test_a_time_counts_at_once_and_may_be_long() -> None:
    """From its line on, whether its block becomes whole or not."""
    parser = FrameParser()
    assert parser.feed(b"retry: " + b"9" * 5_000 + b"\n") == []
    assert parser.retry_ms is not None


def test_an_id_with_a_nul_is_ignored() -> None:
    """The one before stays; an empty one takes it back."""
    [frame] = FrameParser().feed(b"id: a\nid: b\0c\ndata: x\n\n")
    assert (frame.id, frame.unknown) == ("a", ("id: b\0c",))
    [frame] = FrameParser().feed(b"id: a\nid\ndata: x\n\n")
    assert frame.id == ""
