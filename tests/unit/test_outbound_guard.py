"""The outbound session against hostile peers: every form by redirect on a kept connection, rebinding, bombs, drips."""

import asyncio
import gzip
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from tests.egress_forms import REFUSED

from asyncbg.core.clock import SystemClock
from asyncbg.errors import FinalError
from asyncbg.service.integrations.egress import EgressRefusedError
from asyncbg.service.integrations.outbound import Outbound
from asyncbg.service.integrations.outbound_error import FetchError, FetchRejectedError, TooLargeError, WebhookError
from asyncbg.settings import OutboundSettings

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[str]]
Say = Callable[..., Awaitable[str]]
MIB = 1024 * 1024


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server that answers every path with one handler, ``serve(handler, ssl=…)``; gives its host:port."""
    runners: list[web.ServerRunner] = []

    async def start(handler: Handler, *, ssl: ssl.SSLContext | None = None) -> str:
        runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
        await site.start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest_asyncio.fixture
async def say() -> AsyncIterator[Say]:
    """Start a server that says some bytes to everybody, ``say(head, drip=…)``: one of ``drip`` at a time, for ever."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(head: bytes, *, drip: bytes = b"") -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            try:
                while drip:
                    await writer.drain()
                    await asyncio.sleep(0.01)
                    writer.write(drip)
                await writer.drain()
            except ConnectionError:
                return
            writer.close()

        servers.append(await asyncio.start_server(handle, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for writer in writers:
        writer.close()


class Names(AbstractResolver):
    """A resolver with answers prepared for each name, the last one of them for good."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {f"{name}.test": rows for name, rows in answers.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The next answer."""
        rows = self.answers[host]
        addresses = rows.pop(0) if len(rows) > 1 else rows[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing to do."""


def outbound(*, resolver: AbstractResolver | None = None, **settings: Any) -> Outbound:
    """An Outbound of its settings."""
    return Outbound(OutboundSettings(**settings), clock=SystemClock(), resolver=resolver)


LEADING_AWAY = [form for form in REFUSED if "://" in form.url and form.url.isprintable() and " " not in form.url]


async def test_no_form_is_reached_by_redirect_on_a_kept_connection(serve: Serve) -> None:
    """One server is allowed and answers over one connection; wherever it leads, nobody is asked, by the form's rule."""
    connections: set[object] = set()
    location = ""

    async def handle(request: web.BaseRequest) -> web.Response:
        connections.add(request.transport and request.transport.get_extra_info("peername"))
        if request.path == "/ok":
            return web.json_response({})
        return web.Response(status=302, headers={"Location": location})

    home = await serve(handle)
    async with outbound(allow_hosts=(home,)) as client:
        for form in LEADING_AWAY:
            location = form.url
            await client.fetch_json(f"http://{home}/ok")
            with pytest.raises(form.error) as caught:
                await client.fetch_json(f"http://{home}/hop")
            assert "list of allowed hosts" not in str(caught.value), form

    assert len(LEADING_AWAY) > 100
    assert len(connections) == 1


async def test_a_kept_connection_cannot_follow_a_name_that_moves(serve: Serve) -> None:
    """A name that passed once is judged again when a new connection is made: rebinding gets no socket."""
    keep = True

    async def handle(_: web.BaseRequest) -> web.Response:
        answer = web.json_response({})
        if not keep:
            answer.force_close()
        return answer

    home = await serve(handle)
    port = home.rpartition(":")[2]
    names = Names(moving=[["127.0.0.1"], ["169.254.169.254"]])
    async with outbound(allow_hosts=("moving.test", home), resolver=names) as client:
        url = f"http://moving.test:{port}/"
        await client.fetch_json(url)
        keep = False
        await client.fetch_json(url)  # over the kept connection: to the address that was checked
        with pytest.raises(EgressRefusedError, match="resolves to"):
            await client.fetch_json(url)
        with pytest.raises(EgressRefusedError, match="resolves to"):
            await client.deliver_webhook(url, {}, message_id="m")


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.2", "64:ff9b::7f00:2", "64:ff9b:1::7f00:1", "2002:7f00:1::",
     "2001:0:7f00:1::", "fe80::1%1", "fd00::1", "::", "0.0.0.0"],  # noqa: S104 - a target
)  # fmt: skip
async def test_a_name_is_judged_by_each_of_its_addresses(serve: Serve, address: str) -> None:
    """A special address beside a good one gets no socket, the good one is used; alone it is refused."""

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.json_response(request.host)

    home = await serve(handle)
    port = home.rpartition(":")[2]
    names = Names(mixed=[[address, "127.0.0.1"]], bad=[[address]])
    async with outbound(allow_hosts=("mixed.test", "bad.test", home), resolver=names) as client:
        assert (await client.fetch_json(f"http://mixed.test:{port}/")).value == f"mixed.test:{port}"
        with pytest.raises(EgressRefusedError, match="resolves to"):
            await client.fetch_json(f"http://bad.test:{port}/")


async def test_a_public_name_needs_no_list(serve: Serve) -> None:
    """With nothing set but the address of the test itself opened, a name passes: what is refused is the address."""

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.json_response([])

    port = (await serve(handle)).rpartition(":")[2]
    names = Names(some=[["127.0.0.1"]])
    async with outbound(resolver=names) as client:
        with pytest.raises(EgressRefusedError, match="ALLOW_PRIVATE"):
            await client.fetch_json(f"http://some.test:{port}/")
    async with outbound(resolver=names, allow_private=True) as client:
        assert (await client.fetch_json(f"http://some.test:{port}/")).value == []


async def test_nothing_is_carried_to_another_host(serve: Serve) -> None:
    """After a redirect the other host sees our name and what we accept: no login, cookie, referrer or signature."""
    seen: list[dict[str, str]] = []

    async def there(request: web.BaseRequest) -> web.Response:
        seen.append(dict(request.headers))
        return web.json_response({})

    other = (await serve(there)).replace("127.0.0.1", "localhost")

    async def here(_: web.BaseRequest) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://{other}/", "Set-Cookie": "a=b; Domain=localhost"})

    home = await serve(here)
    async with outbound(allow_private=True, webhook_secret="whsec_canary7f3aSecretOfTheTests000000") as client:
        await client.fetch_json(f"http://{home}/?token=secret-canary7f3a")

    assert set(seen[0]) == {"Host", "Accept", "Accept-Encoding", "User-Agent"}


async def test_the_environment_is_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy and no login of the environment is used, whatever it says."""
    asked: list[str] = []

    async def proxy(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.json_response("the proxy's")

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.json_response("Authorization" in request.headers)

    proxy_url = f"http://{await serve(proxy)}"
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy_url)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password secret-canary7f3a\n")

    async with outbound(allow_private=True) as client:
        fetched = await client.fetch_json(f"http://{await serve(handle)}/")

    assert fetched.value is False
    assert asked == []


async def test_a_redirect_from_https_to_http_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A trusted certificate is accepted; what was asked in secret is not asked again in the clear."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    asked: list[str] = []

    async def plain(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.json_response({})

    open_host = await serve(plain)

    async def secret(request: web.BaseRequest) -> web.Response:
        if request.path == "/ok":
            return web.json_response({})
        return web.Response(status=302, headers={"Location": f"http://{open_host}/"})

    home = await serve(secret, ssl=context)
    async with outbound(allow_private=True) as client:
        await client.fetch_json(f"https://{home}/ok")
        with pytest.raises(FetchRejectedError, match="from https to http"):
            await client.fetch_json(f"https://{home}/hop")

    assert asked == []


def raw_deflate(data: bytes) -> bytes:
    """Deflate without the header of zlib, as some servers send it."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


BOMB_BYTES = 64 * MIB
BOMBS: list[tuple[str, Callable[[bytes], bytes], type[FetchError]]] = [
    ("gzip", gzip.compress, TooLargeError),
    ("deflate", zlib.compress, TooLargeError),
    ("deflate", raw_deflate, TooLargeError),
    ("gzip", lambda data: gzip.compress(gzip.compress(data)), FetchError),
    ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data)), FetchError),
    ("br", gzip.compress, FetchError),
]


@pytest.mark.parametrize(("coding", "compress", "error"), BOMBS)
async def test_a_bomb_ends_at_the_limit_in_flat_memory(
    say: Say, coding: str, compress: Callable[[bytes], bytes], error: type[FetchError]
) -> None:
    """64 MiB in about 64 kB cost a few MiB, however they are packed; a packing within a packing is not opened."""
    packed = compress(b" " * BOMB_BYTES)
    assert len(packed) * 900 < BOMB_BYTES
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    base = await say(head + packed)

    tracemalloc.start()
    try:
        async with outbound(allow_private=True, max_bytes=MIB, timeout_s=60) as client:
            with pytest.raises(error):
                await client.fetch_json(base)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 16 * MIB


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 2", b"0"),
        (b"", b"H"),
    ],
)
async def test_a_drip_ends_at_the_deadline(say: Say, head: bytes, drip: bytes) -> None:
    """A byte now and then, in the body, a header or the status line, is left when timeout_s has passed."""
    base = await say(head, drip=drip)

    async with outbound(allow_private=True, timeout_s=0.3) as client:
        with pytest.raises(FetchError) as caught:
            await client.fetch_json(base)

    assert not isinstance(caught.value, FinalError)


async def test_the_answer_of_a_webhook_is_not_read(say: Say) -> None:
    """A receiver that answers without end is told once and left: its status is all that counts."""
    base = await say(b"HTTP/1.1 200 OK\r\n\r\n", drip=b"x" * 65_536)

    async with outbound(allow_private=True, timeout_s=60) as client:
        delivered = await client.deliver_webhook(base, {}, message_id="m")

    assert delivered.status == 200


async def test_a_webhook_never_follows_to_another_host(serve: Serve) -> None:
    """Its signature stays with the host it was made for."""
    asked: list[str] = []

    async def there(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response()

    other = await serve(there)

    async def here(_: web.BaseRequest) -> web.Response:
        return web.Response(status=308, headers={"Location": f"http://{other}/"})

    home = await serve(here)
    async with outbound(allow_private=True) as client:
        with pytest.raises(WebhookError, match="308"):
            await client.deliver_webhook(f"http://{home}/", {}, message_id="m")

    assert asked == []
