"""The client's HTTP side: one session, one base URL, and requests repeated only where nothing is done twice."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
from pydantic import SecretStr
from yarl import URL

from asyncbg.client.error import (
    About,
    ApiError,
    ClientError,
    UnreachableError,
    error_of,
    is_refusal,
    is_transient,
)
from asyncbg.clock import Clock
from asyncbg.errors import AsyncBGError
from asyncbg.retry import RetryPolicy, requested_delay_s

T = TypeVar("T")
Params = Sequence[tuple[str, str]]
Sleep = Callable[[float], Awaitable[None]]

LONGEST_RETRY_AFTER_S: Final = 60.0
_OK = range(200, 300)


class Transport:
    """Makes requests to the service at one base URL. Used by every part of one client."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: SecretStr | str | None,
        session: aiohttp.ClientSession | None,
        timeout_s: float,
        retry: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        sleep: Sleep,
    ) -> None:
        """Nothing is opened yet. Raises ValueError where the address or the key cannot be one."""
        self.base_url = _checked_url(base_url)
        self.clock, self.rng, self.sleep = clock, rng, sleep
        self._key = _checked_key(api_key)
        self._session = session
        self._is_ours = session is None
        self._timeout_s = timeout_s
        self._retry = retry

    def open(self) -> None:
        """Open a session, unless one was given. Its connections are not limited: every stream holds one.

        An idle one is closed before uvicorn would (5 s), so that no request goes out on one that is being closed.
        """
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    async def close(self) -> None:
        """Close the session, unless it was given."""
        if self._is_ours and self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        *,
        about: About,
        params: Params = (),
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        extra_s: float = 0,
        repeatable: bool = True,
        retries: int | None = None,
    ) -> T:
        """Make a request and ``read`` its JSON answer.

        It is made again after a failure that may pass: as often as the policy says, no sooner than the service asks
        (Retry-After). One that is not ``repeatable`` only where it was surely not carried out. ``extra_s`` is how much
        longer than others it may take. Raises what the answer stands for, or UnreachableError.
        """
        most = self._retry.retries if retries is None else retries
        attempt = 0
        while True:
            attempt += 1
            try:
                text = await self._once(method, path, params, body, headers, about, self._timeout_s + extra_s)
            except AsyncBGError as error:
                asked_s = requested_delay_s(error) or 0
                may_repeat = (repeatable and is_transient(error)) or is_refusal(error) or _was_never_sent(error)
                if attempt > most or not may_repeat or asked_s > LONGEST_RETRY_AFTER_S:
                    raise
                await self.sleep(max(asked_s, self._retry.delay_s(attempt, self.rng)))
            else:
                return _understood(text, read, self.base_url + path)

    async def open_stream(
        self, path: str, params: Params, headers: Mapping[str, str], about: About
    ) -> aiohttp.ClientResponse:
        """The response of a stream, unread: its status is 200 or 204. Once; raises as ``request`` does."""
        response = await self._send("GET", path, params, None, headers, self._timeout_s)
        if response.status in {200, 204}:
            return response
        raise await self._refused(response, path, about)

    @contextmanager
    def reaching(self, path: str) -> Iterator[None]:
        """What may go wrong on the network is raised as UnreachableError; a certificate that is no good as final."""
        url = self.base_url + path
        try:
            yield
        except aiohttp.ClientSSLError as error:
            raise ClientError(f"no safe connection to {url}: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = "it took too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise UnreachableError(url, reason) from error

    async def _once(
        self,
        method: str,
        path: str,
        params: Params,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        about: About,
        timeout_s: float,
    ) -> str:
        response = await self._send(method, path, params, body, headers or {}, timeout_s)
        if response.status not in _OK:
            raise await self._refused(response, path, about)
        return await self._text(response, path)

    async def _send(
        self,
        method: str,
        path: str,
        params: Params,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer. A redirect is not followed: it may lead the key away."""
        if self._session is None or self._session.closed:
            raise ClientError("the client is not open; use it inside `async with Client(...) as client:`")
        url = URL(self.base_url + path, encoded=True).with_query(params or None)
        sent = {"Accept": "application/json", **headers}
        if self._key is not None:
            sent["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        data = None
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body, allow_nan=False).encode(), "application/json"
        with self.reaching(path):
            async with asyncio.timeout(timeout_s):
                return await self._session.request(
                    method,
                    url,
                    data=data,
                    headers=sent,
                    allow_redirects=False,
                    raise_for_status=False,
                    timeout=aiohttp.ClientTimeout(total=None),
                )

    async def _text(self, response: aiohttp.ClientResponse, path: str) -> str:
        """The body of an answer; the connection goes back to the pool."""
        with self.reaching(path):
            async with asyncio.timeout(self._timeout_s), response:
                return (await response.read()).decode("utf-8", "replace")

    async def _refused(self, response: aiohttp.ClientResponse, path: str, about: About) -> AsyncBGError:
        text = await self._text(response, path)
        return error_of(response.status, response.headers, text, about=about, now_ms=self.clock.now_ms())


def _was_never_sent(error: AsyncBGError) -> bool:
    """Whether the connection itself could not be made."""
    refused = aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    return isinstance(error, UnreachableError) and isinstance(error.__cause__, refused)


def _understood(text: str, read: Callable[[Any], T], url: str) -> T:
    try:
        return read(json.loads(text))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        detail = f"what {url} answered is not what asyncbg answers; is base_url where its routes are, of this version?"
        raise ApiError(200, "Not understood", detail) from error


def _checked_url(base_url: str) -> str:
    """The address without its last slash."""
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"base_url should be like http://host:8000 or https://host/prefix, not {base_url!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url should hold no user name or password; give a key as api_key=")
    return base_url.rstrip("/")


def _checked_key(api_key: SecretStr | str | None) -> SecretStr | None:
    """The key, hidden from every repr. Raises ValueError, without the key, for one no header can carry."""
    if api_key is None:
        return None
    text = api_key if isinstance(api_key, str) else api_key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("api_key should be printable ASCII without blanks; was a line break read with it?")
    return SecretStr(text)
