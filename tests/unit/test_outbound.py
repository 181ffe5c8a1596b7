"""Outbound HTTP against real servers on loopback: what is fetched, delivered, refused, bounded and retried."""

import asyncio
import gzip
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
import trustme
from aiohttp import web
from pydantic import SecretStr
from standardwebhooks import Webhook

from asyncbg.core.clock import ManualClock, SystemClock
from asyncbg.errors import FinalError, NotRunningError, SettingsError
from asyncbg.service.integrations.egress import BadUrlError, EgressRefusedError
from asyncbg.service.integrations.outbound import Outbound
from asyncbg.service.integrations.outbound_error import (
    FetchError,
    FetchRejectedError,
    NotJsonError,
    TooLargeError,
    WebhookError,
    WebhookGoneError,
    WebhookRejectedError,
)
from asyncbg.service.integrations.signing import SigningError
from asyncbg.settings import OutboundSettings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]
SECRET = "whsec_canary7f3aSecretOfTheTests000000"


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server that answers every path with one handler; gives its base URL."""
    runners: list[web.ServerRunner] = []

    async def start(handler: Handler) -> str:
        runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)  # type: ignore[arg-type]  # BaseRequest
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest_asyncio.fixture
async def raw_serve() -> AsyncIterator[Callable[[bytes], Awaitable[str]]]:
    """Start a server that answers every connection with the same bytes and hangs up."""
    servers: list[asyncio.Server] = []

    async def start(answer: bytes) -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(handle, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


def outbound(*, allow_private: bool = True, **settings: Any) -> Outbound:
    """An Outbound that may reach loopback."""
    return Outbound(OutboundSettings(allow_private=allow_private, **settings), clock=SystemClock())


def answering(status: int, headers: dict[str, str] | None = None, text: str = "{}") -> Handler:
    """A handler with one fixed answer."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers, text=text)

    return handle


async def test_json_is_fetched(serve: Serve) -> None:
    """The value, the status and the number of bytes come back."""
    base = await serve(answering(200, text='{"items": [1, 2.5, null, "\u00e4"]}'))

    async with outbound() as client:
        fetched = await client.fetch_json(f"{base}/data?token=x")

    assert fetched.value == {"items": [1, 2.5, None, "\u00e4"]}
    assert (fetched.status, fetched.bytes) == (200, 31)


async def test_a_large_document_is_fetched(serve: Serve) -> None:
    """A document that is parsed away from the event loop is the same document."""
    items = [{"id": n, "name": "x" * 50} for n in range(5_000)]
    base = await serve(answering(200, text=json.dumps(items)))

    async with outbound() as client:
        assert (await client.fetch_json(base)).value == items


async def test_requests_are_anonymous(serve: Serve) -> None:
    """Our User-Agent is sent; cookies of an earlier answer and credentials are not."""
    seen: list[web.BaseRequest] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        return web.Response(text="{}", headers={"Set-Cookie": "a=b; Path=/"})

    base = await serve(handle)
    async with outbound() as client:
        await client.fetch_json(base)
        await client.fetch_json(base)

    assert seen[1].headers["User-Agent"].startswith("asyncbg/")
    assert not {"Cookie", "Authorization", "Referer"} & set(seen[1].headers)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_decoded(serve: Serve, coding: str) -> None:
    """The bytes counted are the decoded ones."""

    async def handle(_: web.BaseRequest) -> web.Response:
        answer = web.Response(text="[" + " " * 10_000 + "]")
        answer.enable_compression(web.ContentCoding(coding))
        return answer

    base = await serve(handle)
    async with outbound() as client:
        assert (await client.fetch_json(base)).bytes == 10_002


@pytest.mark.parametrize("text", ["[" + "[]," * 3_000_000 + "0]", "[" + "1," * 1_500_000 + "1]"])
async def test_json_of_too_many_parts_is_refused_before_it_is_read(serve: Serve, text: str) -> None:
    """10 KB of gzip become 10 MB of brackets, which would become 270 MB of lists."""

    async def handle(_: web.BaseRequest) -> web.Response:
        answer = web.Response(text=text)
        answer.enable_compression(web.ContentCoding.gzip)
        return answer

    base = await serve(handle)
    async with outbound() as client:
        with pytest.raises(TooLargeError, match="objects and lists"):
            await client.fetch_json(base)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(serve: Serve, status: int) -> None:
    """A relative Location leads on, with a GET."""

    async def handle(request: web.BaseRequest) -> web.Response:
        if request.path == "/a/b":
            return web.Response(status=status, headers={"Location": "../c?d=e"})
        return web.json_response([request.method, request.path_qs])

    base = await serve(handle)
    async with outbound() as client:
        assert (await client.fetch_json(f"{base}/a/b")).value == ["GET", "/c?d=e"]


async def test_a_redirect_loop_ends(serve: Serve) -> None:
    """The first URL and five redirects are asked, then the fetch fails for good."""
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "/again"})

    base = await serve(handle)
    async with outbound() as client:
        with pytest.raises(FetchRejectedError, match="5 redirects"):
            await client.fetch_json(base)

    assert len(asked) == 6


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://169.254.169.254/latest/meta-data/", EgressRefusedError),
        ("http://127.0.0.2/", EgressRefusedError),
        ("//127.0.0.2/", EgressRefusedError),
        ("http://localhost:1/", EgressRefusedError),
        ("http://[::ffff:10.0.0.1]/", EgressRefusedError),
        ("http://2130706433/", BadUrlError),
        ("http://u:p@127.0.0.1/", BadUrlError),
        ("file:///etc/passwd", BadUrlError),
        ("http://[::1", BadUrlError),
        ("", FetchRejectedError),
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(serve: Serve, location: str, error: type[FinalError]) -> None:
    """A redirect to where the first URL could not lead is refused for good."""
    base = await serve(answering(302, headers={"Location": location}))

    async with outbound(allow_private=False, allow_hosts=("127.0.0.1",)) as client:
        with pytest.raises(error):
            await client.fetch_json(base)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST", "localhost.", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]",
     "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[::1]", "0.0.0.0", "2130706433", "0x7f.1", "0177.0.0.1", "127.1",  # noqa: S104 - a target
     "127.0.0.1.", "[::1%25lo]", "\uff11\uff12\uff17.0.0.1", "a@127.0.0.1"],
)  # fmt: skip
async def test_no_form_of_a_private_host_reaches_a_server(serve: Serve, host: str) -> None:
    """With the defaults a real server on loopback is not connected to, by fetch or webhook."""
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.json_response({})

    port = (await serve(handle)).rpartition(":")[2]
    async with outbound(allow_private=False) as client:
        with pytest.raises(FinalError):
            await client.fetch_json(f"http://{host}:{port}/")
        with pytest.raises(FinalError):
            await client.deliver_webhook(f"http://{host}:{port}/", {}, message_id="m")

    assert asked == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST", "[::ffff:127.0.0.1]", "\uff11\uff12\uff17.0.0.1"]
)
async def test_a_private_host_is_reached_when_allowed(serve: Serve, host: str) -> None:
    """ASYNCBG_OUTBOUND__ALLOW_PRIVATE opens loopback."""
    port = (await serve(answering(200))).rpartition(":")[2]

    async with outbound() as client:
        assert (await client.fetch_json(f"http://{host}:{port}/")).value == {}


async def test_a_listed_name_is_refused_at_its_private_address(serve: Serve) -> None:
    """A name that passes the gate is refused when it resolves to loopback, as a final error."""
    port = (await serve(answering(200))).rpartition(":")[2]

    async with outbound(allow_private=False, allow_hosts=("localhost",)) as client:
        with pytest.raises(EgressRefusedError, match="resolves to"):
            await client.fetch_json(f"http://localhost:{port}/")


@pytest.mark.parametrize("text", ["", "<html>", "{", "[NaN]", "[Infinity]", "\x00", "[" * 100_000, "9" * 5_000])
async def test_what_is_not_json_fails_for_good(serve: Serve, text: str) -> None:
    """An answer that does not parse raises NotJsonError, which is final."""
    base = await serve(answering(200, text=text))

    async with outbound() as client:
        with pytest.raises(NotJsonError):
            await client.fetch_json(base)

    assert issubclass(NotJsonError, FinalError)


@pytest.mark.parametrize("status", [500, 502, 503, 408, 429])
async def test_a_passing_failure_may_be_retried(serve: Serve, status: int) -> None:
    """5xx, 408 and 429 raise errors that are not final and carry status and Retry-After, for fetch and webhook."""
    base = await serve(answering(status, headers={"Retry-After": "7"}))

    async with outbound() as client:
        with pytest.raises(FetchError) as fetched:
            await client.fetch_json(f"{base}/p?token=secret-canary7f3a")
        with pytest.raises(WebhookError) as delivered:
            await client.deliver_webhook(f"{base}/p?token=secret-canary7f3a", {}, message_id="m")

    for caught in (fetched.value, delivered.value):
        assert not isinstance(caught, FinalError)
        assert (caught.status, caught.retry_after_s) == (status, 7.0)
        assert str(status) in str(caught)
        assert "secret" not in str(caught)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refusal_is_final_for_a_fetch_only(serve: Serve, status: int) -> None:
    """Another 4xx ends a fetch; a webhook's receiver may come round, and may say when."""
    base = await serve(answering(status, headers={"Retry-After": "7"}))

    async with outbound() as client:
        with pytest.raises(FetchRejectedError):
            await client.fetch_json(base)
        with pytest.raises(WebhookError) as delivered:
            await client.deliver_webhook(base, {}, message_id="m")

    assert issubclass(FetchRejectedError, FinalError)
    assert not isinstance(delivered.value, FinalError)
    assert (delivered.value.status, delivered.value.retry_after_s) == (status, 7.0)


async def test_a_receiver_that_is_gone_says_so(serve: Serve) -> None:
    """410 has an error of its own, the only answer that is final."""
    base = await serve(answering(410, headers={"Retry-After": "1"}))

    async with outbound() as client:
        with pytest.raises(WebhookGoneError, match="receiver is gone"):
            await client.deliver_webhook(base, {}, message_id="m")

    assert issubclass(WebhookGoneError, FinalError)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Fri, 15 Jan 2100 07:00:00 GMT", 86_400.0),
        ("999999999", 86_400.0),
        ("-1", None),
        ("soon", None),
        ("99999999999999999999", None),
    ],
)
async def test_retry_after_is_understood(serve: Serve, value: str, expected: float | None) -> None:
    """Seconds and dates count from the clock, at most a day; nonsense is no wish at all."""
    base = await serve(answering(503, headers={"Retry-After": value}))

    async with Outbound(OutboundSettings(allow_private=True), clock=ManualClock(1_800_000_000_000)) as client:
        with pytest.raises(FetchError) as caught:
            await client.fetch_json(base)

    assert caught.value.retry_after_s == expected


async def test_an_answer_over_the_limit_is_given_up(serve: Serve) -> None:
    """One byte more than max_bytes raises TooLargeError; exactly max_bytes is taken."""
    base = await serve(answering(200, text="[" + " " * 98 + "]"))

    async with outbound(max_bytes=100) as client:
        assert (await client.fetch_json(base)).bytes == 100
    async with outbound(max_bytes=99) as client:
        with pytest.raises(TooLargeError, match="MAX_BYTES"):
            await client.fetch_json(base)


async def test_a_decompression_bomb_ends_at_the_limit(raw_serve: Callable[[bytes], Awaitable[str]]) -> None:
    """Sixty-four megabytes of blanks in sixty-two kilobytes of gzip are stopped at max_bytes, quickly."""
    member = gzip.compress(b" " * 64_000_000, compresslevel=9)
    base = await raw_serve(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + member)
    started_s = time.monotonic()

    async with outbound(max_bytes=1_000_000, timeout_s=5) as client:
        with pytest.raises(TooLargeError):
            await client.fetch_json(base)

    assert time.monotonic() - started_s < 4


async def test_a_slow_drip_ends_at_the_deadline(serve: Serve) -> None:
    """A server that sends a byte now and then for ever is left when timeout_s has passed."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b" ")
            await asyncio.sleep(0.02)

    base = await serve(handle)
    started_s = time.monotonic()
    async with outbound(timeout_s=0.3) as client:
        with pytest.raises(FetchError, match=r"0\.3 s") as caught:
            await client.fetch_json(base)

    assert not isinstance(caught.value, FinalError)
    assert time.monotonic() - started_s < 3


async def test_the_deadline_covers_all_redirects(serve: Serve) -> None:
    """Hops that are quick one by one do not add up beyond timeout_s."""

    async def handle(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0.15)
        return web.Response(status=302, headers={"Location": "/on"})

    base = await serve(handle)
    async with outbound(timeout_s=0.4) as client:
        with pytest.raises(FetchError, match=r"0\.4 s"):
            await client.fetch_json(base)


async def test_a_silent_receiver_may_be_retried(serve: Serve) -> None:
    """A webhook without an answer in time raises WebhookError that is not final."""

    async def handle(_: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    base = await serve(handle)
    async with outbound(timeout_s=0.2) as client:
        with pytest.raises(WebhookError) as caught:
            await client.deliver_webhook(base, {}, message_id="m")

    assert not isinstance(caught.value, FinalError)


async def test_a_refused_connection_may_be_retried() -> None:
    """Nobody listening raises errors that are not final and name the origin only."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async with outbound() as client:
        with pytest.raises(FetchError, match=f"127.0.0.1:{port}: Connection refused") as fetched:
            await client.fetch_json(f"http://127.0.0.1:{port}/secret?secret")
        with pytest.raises(WebhookError) as delivered:
            await client.deliver_webhook(f"http://127.0.0.1:{port}/secret?secret", {}, message_id="m")

    for caught in (fetched.value, delivered.value):
        assert not isinstance(caught, FinalError)
        assert "secret" not in str(caught)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n{}",
    ],
)
async def test_a_broken_answer_may_be_retried(answer: bytes, raw_serve: Callable[[bytes], Awaitable[str]]) -> None:
    """A peer that hangs up, speaks something else or sends a broken body raises FetchError that is not final."""
    base = await raw_serve(answer)

    async with outbound() as client:
        with pytest.raises(FetchError) as caught:
            await client.fetch_json(base)

    assert not isinstance(caught.value, FinalError)


async def test_an_unknown_certificate_is_not_accepted() -> None:
    """A server whose authority the system does not trust gets no request; the error is not final."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)

    async with server, outbound() as client:
        with pytest.raises(FetchError, match="certificate") as caught:
            await client.fetch_json(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    assert not isinstance(caught.value, FinalError)


async def test_a_webhook_is_compact_json_signed_under_a_constant_id(serve: Serve) -> None:
    """Every attempt carries the same webhook-id, a valid signature and the payload as compact UTF-8 JSON."""
    seen: list[tuple[dict[str, str], bytes]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        seen.append(({name.lower(): value for name, value in request.headers.items()}, await request.read()))
        return web.Response(status=503 if len(seen) == 1 else 204)

    base = await serve(handle)
    payload = {"user_id": "7", "action": "external_fetch_triggered", "name": "\u00e4"}
    async with outbound(webhook_secret=SecretStr(SECRET)) as client:
        with pytest.raises(WebhookError):
            await client.deliver_webhook(base, payload, message_id="job-1")
        delivered = await client.deliver_webhook(base, payload, message_id="job-1")

    assert delivered.status == 204
    assert delivered.duration_s >= 0
    for headers, body in seen:
        assert body == '{"user_id":"7","action":"external_fetch_triggered","name":"\u00e4"}'.encode()
        assert headers["content-type"] == "application/json"
        assert headers["webhook-id"] == "job-1"
        assert Webhook(SECRET).verify(body, headers) == payload


@pytest.mark.parametrize("separate", [" ".join, ",".join, json.dumps])
async def test_several_secrets_sign_every_message(serve: Serve, separate: Callable[[list[str]], str]) -> None:
    """Secrets separated by a blank or a comma, or in a list, each add a signature."""
    seen: list[dict[str, str]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return web.Response()

    base = await serve(handle)
    other = "whsec_canary7f3aAnotherSecretOfTests00"
    async with outbound(webhook_secret=SecretStr(separate([SECRET, other]))) as client:
        await client.deliver_webhook(base, {}, message_id="m")

    assert Webhook(SECRET).verify("{}", seen[0]) == Webhook(other).verify("{}", seen[0]) == {}
    assert seen[0]["webhook-signature"].count("v1,") == 2


@pytest.mark.parametrize("secret", ["whsec_***", "[whsec_a]", "whsec_", f"{SECRET},whsec_***"])
def test_a_malformed_secret_stops_the_start(secret: str) -> None:
    """One line names the setting, not the secret."""
    with pytest.raises(SettingsError, match=r"\AASYNCBG_OUTBOUND__WEBHOOK_SECRET: .+\Z") as caught:
        outbound(webhook_secret=SecretStr(secret))

    assert "***" not in str(caught.value)


async def test_without_a_secret_a_webhook_is_not_signed(serve: Serve) -> None:
    """The id is still sent, so that a receiver can drop repeats."""
    seen: list[web.BaseRequest] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        return web.Response()

    base = await serve(handle)
    async with outbound() as client:
        await client.deliver_webhook(base, {}, message_id="m")

    assert seen[0].headers["webhook-id"] == "m"
    assert "webhook-signature" not in seen[0].headers


async def test_a_webhook_is_not_redirected(serve: Serve) -> None:
    """A 3xx is a failure to be tried again, and the second place is never asked."""
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    base = await serve(handle)
    async with outbound() as client:
        with pytest.raises(WebhookError, match="307") as failed:
            await client.deliver_webhook(f"{base}/hook", {}, message_id="m")

    assert not isinstance(failed.value, FinalError)
    assert asked == ["/hook"]


@pytest.mark.parametrize("secret", [None, SecretStr(SECRET)])
async def test_a_message_id_cannot_inject_a_header(serve: Serve, secret: SecretStr | None) -> None:
    """A line break in the id is refused for good, signed or not."""
    base = await serve(answering(200))

    async with outbound(webhook_secret=secret) as client:
        with pytest.raises(SigningError):
            await client.deliver_webhook(base, {}, message_id="m\r\nX: y")


@pytest.mark.parametrize("payload", [{"a": object()}, {"a": float("nan")}, {"a": "\ud800"}])
async def test_a_payload_without_a_json_form_is_refused(serve: Serve, payload: dict[str, object]) -> None:
    """What cannot be encoded fails for good before anything is sent."""
    base = await serve(answering(200))

    async with outbound() as client:
        with pytest.raises(WebhookRejectedError, match="JSON"):
            await client.deliver_webhook(base, payload, message_id="m")


async def test_outside_its_context_nothing_is_sent() -> None:
    """A request before the context was entered raises NotRunningError."""
    with pytest.raises(NotRunningError):
        await outbound().fetch_json("http://127.0.0.1/")


async def test_environment_proxies_are_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY does not redirect a request around the address check."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    base = await serve(answering(200))

    async with outbound() as client:
        assert (await client.fetch_json(base)).status == 200
