"""Outbound HTTP requests to user-supplied URLs: JSON fetches and webhooks, with egress policy, limits and timeouts."""

import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any, NoReturn, Self

import aiohttp
import anyio
import anyio.to_thread
from aiohttp.abc import AbstractResolver
from anyio.lowlevel import checkpoint
from pydantic import SecretStr
from yarl import URL

from asyncbg.core.clock import Clock
from asyncbg.core.stored_text import HeavyJsonError, require_light
from asyncbg.errors import AsyncBGError, NotRunningError, SettingsError
from asyncbg.service import version
from asyncbg.service.integrations.content_coding import ASKED, CodingError, ContentDecoder
from asyncbg.service.integrations.egress import BadUrlError, EgressPolicy
from asyncbg.service.integrations.outbound_error import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    FetchError,
    FetchRejectedError,
    NotJsonError,
    OutboundError,
    TooLargeError,
    WebhookError,
    WebhookGoneError,
    WebhookRejectedError,
    raise_outbound_error,
)
from asyncbg.service.integrations.signing import (
    ID_HEADER,
    TIMESTAMP_HEADER,
    SigningError,
    WebhookSigner,
    check_message_id,
    split_secrets,
)
from asyncbg.service.integrations.url_text import UrlText
from asyncbg.settings import OutboundSettings

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE_4XX = frozenset({408, 429})
_CUT_TOKEN_LENGTH = 6
_CHUNK_BYTES = 65_536
_PARSE_IN_LOOP_BYTES = 65_536
_MOST_VALUES, _MOST_CONTAINERS = 1_000_000, 200_000
_MAX_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched JSON document: its value, the final status and its decoded size in bytes."""

    value: Any
    status: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delivered webhook: the receiver's status and the duration."""

    status: int
    duration_s: float


class Outbound:
    """HTTP client session for all outbound requests; use it as an async context manager.

    It ignores proxies and credentials of the environment and stores no cookies. Every address is checked when its
    socket is created, every URL at each request. ``timeout_s`` limits a whole request, including redirects and body.
    With several webhook secrets, each of them signs every message, so that a receiver can rotate.
    """

    def __init__(self, settings: OutboundSettings, *, clock: Clock, resolver: AbstractResolver | None = None) -> None:
        """Use the system's resolver unless ``resolver`` is given. Raises SettingsError for an invalid setting."""
        self._settings = settings
        self._clock = clock
        self._resolver = resolver
        self._policy = EgressPolicy(settings.allow_hosts, settings.allow_private)
        self._signer = _signer(settings.webhook_secret)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=self._policy.socket_factory,
                resolver=self._resolver,
                use_dns_cache=False,  # resolve the name for every new connection
                ssl=_trust(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"asyncbg/{version()}", "Accept-Encoding": ", ".join(ASKED)},
            auto_decompress=False,  # to distinguish a truncated body from a complete one
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None),  # _deadline limits all hops together
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session and its connections."""
        session, self._session = self._session, None
        if session is not None:
            with anyio.CancelScope(shield=True):
                await session.close()

    def check_url(self, url: str) -> URL:
        """Return the parsed URL. Raises BadUrlError or EgressRefusedError."""
        return self._policy.check_url(url)

    async def fetch_json(self, url: str) -> Fetched:
        """GET ``url``, following up to five redirects, and parse the response as JSON.

        Raises FetchError if a retry may succeed; its final subclasses, BadUrlError and EgressRefusedError otherwise.
        """
        target = self._policy.check_url(url)
        with _deadline(self._settings.timeout_s, FetchError):
            for _ in range(MAX_REDIRECTS + 1):
                async with self._request("GET", target, FetchError, headers={"Accept": "application/json"}) as answer:
                    if answer.status not in _REDIRECTS:
                        return await self._read(answer)
                    target = self._next_hop(answer)
        raise FetchRejectedError(f"{target.origin()} was not reached after {MAX_REDIRECTS} redirects")

    async def deliver_webhook(self, url: str, payload: Mapping[str, object], *, message_id: str) -> Delivered:
        """POST ``payload`` as compact JSON. Keep ``message_id`` for every attempt: receivers deduplicate by it.

        Redirects are not followed. Raises WebhookError for every status but 2xx and 410 (Standard Webhooks, "Delivery
        success and failure"), WebhookGoneError for 410, WebhookRejectedError for a payload without a JSON form, and
        BadUrlError or EgressRefusedError for the URL.
        """
        target = self._policy.check_url(url)
        body, headers = self._message(payload, message_id)
        started_ms = self._clock.monotonic_ms()
        with _deadline(self._settings.timeout_s, WebhookError):
            async with self._request("POST", target, WebhookError, headers=headers, data=body) as answer:
                if answer.status == HTTPStatus.GONE:
                    raise WebhookGoneError(f"{target.origin()} answered 410: the receiver is gone", status=410)
                self._check_status(answer, WebhookError, final=WebhookError)
                return Delivered(answer.status, (self._clock.monotonic_ms() - started_ms) / 1000)

    def _message(self, payload: Mapping[str, object], message_id: str) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of a webhook, signed if there is a secret."""
        try:
            body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise WebhookRejectedError("the webhook's payload has no JSON form") from None
        timestamp_s = self._clock.now_ms() // 1000
        if self._signer:
            headers = self._signer.sign(message_id, timestamp_s, body)
        else:
            check_message_id(message_id)
            headers = {ID_HEADER: message_id, TIMESTAMP_HEADER: str(timestamp_s)}
        return body, headers | {"Content-Type": "application/json"}

    @asynccontextmanager
    async def _request(
        self, method: str, url: URL, error: type[OutboundError], **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request without redirects. Client errors, also while reading the body, are raised as ``error``."""
        if self._session is None:
            raise NotRunningError("Outbound is used outside its context; write: async with Outbound(...) as outbound")
        try:
            async with self._session.request(method, url, allow_redirects=False, **options) as answer:
                _check_headers(answer, error)
                yield answer
        except AsyncBGError:  # EgressRefusedError is an OSError too
            raise
        except (aiohttp.ClientError, OSError, ValueError) as cause:
            raise_outbound_error(cause, url, error)

    def _next_hop(self, answer: aiohttp.ClientResponse) -> URL:
        """Return the checked target of a redirect; a redirect from https to http is refused."""
        location = next((value for name, value in answer.raw_headers if name.lower() == b"location"), b"")
        if not location.strip():
            raise FetchRejectedError(f"{answer.url.origin()} sent a redirect without a Location", status=answer.status)
        target = self._policy.check_url(_absolute(answer.url, location))
        if answer.url.scheme == "https" and target.scheme != "https":
            raise FetchRejectedError(f"{answer.url.origin()} redirects from https to http", status=answer.status)
        return target

    async def _read(self, answer: aiohttp.ClientResponse) -> Fetched:
        """Read the body as JSON, with its decoded size limited."""
        self._check_status(answer, FetchError, final=FetchRejectedError)
        if answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT):
            raise NotJsonError(f"{answer.url.origin()} answered {answer.status}, without content", status=answer.status)
        body = await self._body(answer)
        try:
            value = await _parsed(body)
        except HeavyJsonError as error:
            raise TooLargeError(f"{answer.url.origin()} sent JSON that {error}", status=answer.status) from None
        except (ValueError, RecursionError) as error:
            if _ends_early(answer, body, error):
                raise FetchError(f"{answer.url.origin()} sent truncated JSON", status=answer.status) from None
            raise NotJsonError(f"{answer.url.origin()} did not answer with JSON", status=answer.status) from None
        return Fetched(value, answer.status, len(body))

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        """Return the decoded body. Raises TooLargeError, FetchError or FetchRejectedError."""
        origin, body = answer.url.origin(), bytearray()
        try:
            decoder = ContentDecoder(answer.headers.getall("Content-Encoding", ()), max_bytes=self._settings.max_bytes)
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                for piece in decoder.feed(chunk):
                    body += piece
                    if len(body) > self._settings.max_bytes:
                        limit = f"more than {self._settings.max_bytes} bytes (ASYNCBG_OUTBOUND__MAX_BYTES)"
                        raise TooLargeError(f"{origin} sent {limit}", status=answer.status)
                    await checkpoint()
            decoder.finish()
        except CodingError as error:
            kind = FetchRejectedError if error.is_final else FetchError
            raise kind(f"{origin} {error}", status=answer.status) from None
        return bytes(body)

    def _check_status(
        self, answer: aiohttp.ClientResponse, error: type[OutboundError], *, final: type[OutboundError]
    ) -> None:
        """Raise ``error`` for 408, 429 and 5xx, ``final`` for any other status but 2xx."""
        status = answer.status
        if 200 <= status < 300:
            return
        kind = error if status >= 500 or status in _RETRYABLE_4XX else final
        retry_after_s = self._retry_after_s(answer.headers.get("Retry-After", ""))
        raise kind(f"{answer.url.origin()} answered {status}", status=status, retry_after_s=retry_after_s)

    def _retry_after_s(self, value: str) -> float | None:
        """Parse ``Retry-After`` (RFC 9110, 10.2.3): seconds or a date, at most a day; None if missing or malformed."""
        if value.isascii() and value.isdigit() and len(value) < 10:
            return min(float(value), _MAX_RETRY_AFTER_S)
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - self._clock.now_ms() / 1000
        except (ValueError, OverflowError):
            return None
        return min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)


def _check_headers(answer: aiohttp.ClientResponse, error: type[OutboundError]) -> None:
    """Raise ``error`` for headers that are too large in all; aiohttp bounds the size of each, and their number."""
    if sum(len(name) + len(value) for name, value in answer.raw_headers) > MAX_HEADER_BYTES:
        raise error(f"{answer.url.origin()} answered with headers over {MAX_HEADER_BYTES // 1024} KiB in all")


def _trust() -> ssl.SSLContext:
    """Return a TLS context with the system's certificate authorities and HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _signer(secret: SecretStr | None) -> WebhookSigner | None:
    """Return a signer with all secrets of the setting, None without one."""
    if secret is None:
        return None
    try:
        return WebhookSigner(split_secrets(secret.get_secret_value()))
    except SigningError as error:
        raise SettingsError(f"ASYNCBG_OUTBOUND__WEBHOOK_SECRET: {error}; correct it") from None


def _absolute(base: URL, location: bytes) -> str:
    """Return a Location as an absolute URL, its bytes unchanged. Raises BadUrlError."""
    try:
        reference = UrlText.of_location(location)
    except UnicodeDecodeError:
        raise BadUrlError(f"{base.origin()} redirects to a malformed URL") from None
    return str(UrlText.split(str(base)).resolve(reference))


def _ends_early(answer: aiohttp.ClientResponse, body: bytes, error: Exception) -> bool:
    """Whether JSON that does not parse is truncated: without a length, only the connection's end delimits the body."""
    if "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers:
        return False
    if isinstance(error, UnicodeDecodeError):
        return error.end == len(body)
    if not isinstance(error, json.JSONDecodeError):
        return False
    is_begun = error.doc.lstrip()[:1] in ("", "[", "{", '"')
    return is_begun and ("Unterminated" in error.msg or len(error.doc) - error.pos <= _CUT_TOKEN_LENGTH)


@contextmanager
def _deadline(timeout_s: float, error: type[OutboundError]) -> Iterator[None]:
    """Limit the time of a block. Raises ``error`` on timeout."""
    try:
        with anyio.fail_after(timeout_s):
            yield
    except TimeoutError:
        raise error(f"no complete answer within {timeout_s:g} s (ASYNCBG_OUTBOUND__TIMEOUT_S)") from None


async def _parsed(body: bytes) -> Any:
    """Parse ``body`` as JSON; a large body is parsed in a worker thread."""
    if len(body) <= _PARSE_IN_LOOP_BYTES:
        return _loads(body)
    return await anyio.to_thread.run_sync(_loads, body)


def _loads(body: bytes) -> Any:
    require_light(body, most_values=_MOST_VALUES, most_containers=_MOST_CONTAINERS)
    return json.loads(body, parse_constant=_not_json)


def _not_json(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON (RFC 8259)."""
    raise ValueError(f"{name} is not JSON")
