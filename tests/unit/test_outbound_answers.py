"""Answers as servers give them: what is read, what is asked for again, and by which name the rest is refused."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from asyncbg.core.clock import SystemClock
from asyncbg.errors import FinalError
from asyncbg.service.integrations.content_coding import ContentDecoder
from asyncbg.service.integrations.egress import BadUrlError
from asyncbg.service.integrations.outbound import Outbound
from asyncbg.service.integrations.outbound_error import FetchError, FetchRejectedError, NotJsonError
from asyncbg.settings import OutboundSettings

Say = Callable[..., Awaitable[str]]
ITEMS = [{"n": n, "t": str(n * 7919)} for n in range(2_000)]
WHOLE = gzip.compress(json.dumps(ITEMS).encode())
SMALL = gzip.compress(b"[1, 2]")


@pytest_asyncio.fixture
async def say() -> AsyncIterator[Say]:
    """Start a server that answers each path with prepared bytes, ``say(answer, path=answer…)``, and notes targets."""
    servers: list[asyncio.Server] = []

    async def start(answer: bytes, asked: list[str] | None = None, **others: bytes) -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            if asked is not None:
                asked.append(target)
            writer.write(others.get(target.strip("/"), answer))
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(handle, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


def outbound(timeout_s: float = 10) -> Outbound:
    """An Outbound that may reach loopback."""
    return Outbound(OutboundSettings(allow_private=True, timeout_s=timeout_s), clock=SystemClock())


def head(*headers: str, status: str = "200 OK") -> bytes:
    """The head of an answer."""
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, "")).encode("latin-1")


def whole(body: bytes, *headers: str) -> bytes:
    """An answer with its length."""
    return head(f"Content-Length: {len(body)}", *headers) + body


def closing(body: bytes, *headers: str) -> bytes:
    """An answer that ends with its connection."""
    return head("Connection: close", *headers) + body


def chunked(body: bytes, *headers: str) -> bytes:
    """An answer in one chunk."""
    return head("Transfer-Encoding: chunked", *headers) + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


CODED = {
    "identity": b"[1, 2]", "": b"[1, 2]", "UTF-8": b"[1, 2]", "none": b"[1, 2]", "binary": b"[1, 2]", "\xe9": b"[1, 2]",
    "application/json": b"[1, 2]", "gzip": SMALL, "GZIP": SMALL, "x-gzip": SMALL, "gzip, identity": SMALL,
    "gzip, gzip": gzip.compress(SMALL), "deflate": zlib.compress(b"[1, 2]"), "x-deflate": zlib.compress(b"[1, 2]"),
    "Deflate": zlib.compress(b"[1, 2]")[2:-4], "deflate, gzip": gzip.compress(zlib.compress(b"[1, 2]")),
}  # fmt: skip


@pytest.mark.parametrize("frame", [whole, closing, chunked])
@pytest.mark.parametrize("coding", CODED)
async def test_a_coding_is_undone_or_no_coding(say: Say, coding: str, frame: Callable[..., bytes]) -> None:
    """gzip and deflate under their names, twice if need be; what names no coding changes nothing, as in browsers."""
    base = await say(frame(CODED[coding], f"Content-Encoding: {coding}"))

    async with outbound() as client:
        assert (await client.fetch_json(base)).value == [1, 2]


@pytest.mark.parametrize(
    "behind", [bytes(16), b"padding", b"\x1f", gzip.compress(b"", mtime=0), gzip.compress(b" ", mtime=0) * 3]
)
async def test_what_follows_a_gzip_body_does_no_harm(say: Say, behind: bytes) -> None:
    """Padding is ignored, more members are decoded."""
    base = await say(whole(SMALL + behind, "Content-Encoding: gzip"))

    async with outbound() as client:
        assert (await client.fetch_json(base)).value == [1, 2]


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_members_are_found_wherever_a_chunk_ends(step: int) -> None:
    """The mark of a member may be cut in two."""
    decoder, data = ContentDecoder(["gzip"], max_bytes=1_000), gzip.compress(b"[1,") + gzip.compress(b"2]") + bytes(3)

    decoded = b"".join(b"".join(decoder.feed(data[at : at + step])) for at in range(0, len(data), step))

    decoder.finish()
    assert decoded == b"[1,2]"


@pytest.mark.parametrize(
    "coding", ["br", "BR", "zstd", "compress", "x-compress", "gzip, br", "gzip, gzip, gzip, gzip, gzip"]
)
async def test_a_coding_that_was_not_asked_for_is_refused_by_its_name(say: Say, coding: str) -> None:
    """For good: asked again, the server would do the same."""
    base = await say(whole(b"\x0b\x02\x80[1]\x03", f"Content-Encoding: {coding}"))

    async with outbound() as client:
        with pytest.raises(FetchRejectedError, match="coding") as caught:
            await client.fetch_json(base)

    assert coding.lower().rpartition(", ")[2] in str(caught.value) or "4 codings" in str(caught.value)


CUT_OFF = {
    "length": head("Content-Length: 100") + b"[1,",
    "chunk": head("Transfer-Encoding: chunked") + b"5\r\n[1,",
    "last chunk": head("Transfer-Encoding: chunked") + b"3\r\n[1]\r\n",
    "nothing": closing(b""),
    "list": closing(b"[1, 2,"),
    "word": closing(b"[1, tru"),
    "number": closing(b'{"a": 1'),
    "text": closing(b'{"a": "b, and so on'),
    "escape": closing(b'["\\u00e'),
    "character": closing('["\u00e4'.encode()[:-1]),
    "gzip": whole(WHOLE[:-500], "Content-Encoding: gzip"),
    "gzip in chunks": chunked(WHOLE[:-500], "Content-Encoding: gzip"),
    "gzip until close": closing(WHOLE[:-500], "Content-Encoding: gzip"),
    "gzip without its sum": closing(WHOLE[:-8], "Content-Encoding: gzip"),
    "second member": whole(SMALL + SMALL[:7], "Content-Encoding: gzip"),
    "deflate": whole(zlib.compress(b"[1, 2]")[:-3], "Content-Encoding: deflate"),
    "inner gzip": whole(gzip.compress(SMALL[:-4]), "Content-Encoding: gzip, gzip"),
}


@pytest.mark.parametrize("how", CUT_OFF)
async def test_a_body_that_is_cut_off_is_asked_for_again(say: Say, how: str) -> None:
    """Whatever its framing: not final, and not taken for whole."""
    base = await say(CUT_OFF[how])

    async with outbound() as client:
        with pytest.raises(FetchError, match="truncated") as caught:
            await client.fetch_json(base)

    assert not isinstance(caught.value, FinalError)


@pytest.mark.parametrize(
    "answer",
    [
        closing(b"<html>not found, sorry</html>"), whole(b"[1,"), whole(b""), head(status="204 No Content"),
        head("Content-Length: 0", status="205 Reset Content"), closing(b"[1, nonsense and more of it]"),
    ],
)  # fmt: skip
async def test_a_whole_body_that_is_no_json_is_final(say: Say, answer: bytes) -> None:
    """It came as its server meant it."""
    base = await say(answer)

    async with outbound() as client:
        with pytest.raises(NotJsonError):
            await client.fetch_json(base)


@pytest.mark.parametrize(
    "answer",
    [
        *(whole(b"[1, 2]", f"Content-Security-Policy: {'a' * size}") for size in (8_000, 9_000, 34_000, 65_000)),
        whole(b"[1, 2]", *(f"X-Item-{n}: {'y' * 200}" for n in range(250))),
        head("Content-Length: 6", status="200") + b"[1, 2]",
        head("Content-Length: 6", status="200 Gr\xfc\xdfe") + b"[1, 2]",
        head("Content-Length: 6", status="206 Partial Content") + b"[1, 2]",
        head(status="100 Continue") + whole(b"[1, 2]"),
        head("Link: </a>", status="103 Early Hints") + head(status="102 Processing") + whole(b"[1, 2]"),
        b"HTTP/1.0 200 OK\r\n\r\n[1, 2]",
        b"HTTP/1.1 200 OK\nContent-Length: 6\n\n[1, 2]",
        whole(b"[1, 2]", "X: a\r\n b"),
    ],
)
async def test_odd_heads_are_read(say: Say, answer: bytes) -> None:
    """Headers of 64 KiB, hundreds of them, interim answers, status lines of all kinds."""
    base = await say(answer)

    async with outbound() as client:
        assert (await client.fetch_json(base)).value == [1, 2]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (whole(b"[]", f"X: {'a' * 70_000}"), "answered with a header over 64 KiB"),
        (whole(b"[]", *(f"X-{n}: {'a' * 7_000}" for n in range(10))), "answered with headers over 64 KiB in all"),
        (whole(b"[]", *(f"X-{n}: y" for n in range(300))), "answered with more than 256 headers"),
        (whole(b"[]", "X: a\0b"), "answered in malformed HTTP"),
        (head("Content-Length: x"), "answered in malformed HTTP"),
        (head(status="1000 x"), "answered in malformed HTTP"),
        (whole(b"[]", "Content-Encoding: gzip"), "sent a body that is not gzip, as its Content-Encoding says"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "did not answer in HTTP"),
        (b"220 mx.example ESMTP\r\n", "did not answer in HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "did not answer in HTTP"),
        (b"", "closed the connection before its answer was complete"),
    ],
)
async def test_what_cannot_be_read_is_named(say: Say, answer: bytes, named: str) -> None:
    """Only what is no HTTP is called that."""
    base = await say(answer)

    async with outbound() as client:
        with pytest.raises(FetchError, match=named) as caught:
            await client.fetch_json(base)

    assert not isinstance(caught.value, FinalError)


@pytest.mark.parametrize(
    "status", ["101 Switching", "300 Multiple Choices", "304 Not Modified", "305 Use Proxy", "418 T"]
)
async def test_other_statuses_are_final(say: Say, status: str) -> None:
    """None of them is a redirect or a document."""
    base = await say(head("Location: /e", "Content-Length: 0", status=status))

    async with outbound() as client:
        with pytest.raises(FetchRejectedError, match=f"answered {status[:3]}"):
            await client.fetch_json(base)


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/d?sig=ab%2Fcd%3D%3D", "/d?sig=ab%2Fcd%3D%3D"),
        ("/caf\xe9/items?q=\xe9", "/caf%E9/items?q=%E9"),
        ("caf\u00e9".encode().decode("latin-1"), "/caf%C3%A9"),
        ("/a b?c d", "/a%20b?c%20d"),
        ("{base}/a b", "/a%20b"),
        ("{base}/a?", "/a?"),
        ("./x/../e#f", "/e"),
        ("?x=%3A", "/go?x=%3A"),
    ],
)
async def test_a_redirect_leads_where_its_bytes_say(say: Say, location: str, asked: str) -> None:
    """Escapes stay, other bytes are quoted one by one, blanks too, relative and absolute alike."""
    targets: list[str] = []
    end = await say(whole(b"[1]"), targets)
    to = location.format(base=end) if "{" in location else location
    redirect = head(f"Location: {to}", "Content-Length: 0", status="302 Found")
    base = end if "{" in location else await say(whole(b"[1]"), targets, go=redirect)
    start = await say(redirect) if "{" in location else f"{base}/go"

    async with outbound() as client:
        assert (await client.fetch_json(start)).value == [1]

    assert targets[-1] == asked


@pytest.mark.parametrize("location", ["//caf\xe9.example/", "http://a b/", "\\\\127.0.0.2\\x", "/a\\b", "http://u:p@127.0.0.1/",
                                      "http://127.0.0.1:0/", "/" + "a" * 8_000])  # fmt: skip
async def test_a_redirect_to_what_is_no_url_is_refused(say: Say, location: str) -> None:
    """Quoting mends no host, and what two programs read differently is not followed."""
    base = await say(head(f"Location: {location}", "Content-Length: 0", status="302 Found"))

    async with outbound() as client:
        with pytest.raises(BadUrlError):
            await client.fetch_json(base)
