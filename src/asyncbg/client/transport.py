"""HTTP requests of the client: one session, one base URL, retries that repeat no effect, backoff during an outage."""

import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

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
from asyncbg.client.wire import Params, checked_key, checked_url
from asyncbg.core.clock import Clock
from asyncbg.core.retry import RetryPolicy, requested_delay_s
from asyncbg.errors import AsyncBGError

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

LONGEST_RETRY_AFTER_S: Final = 60.0
_OK = range(200, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to make. ``path`` is below the base URL, and encoded; ``timeout_s`` its own time limit."""

    method: str = "GET"
    path: str
    params: Params = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    about: About = field(default_factory=About)
    timeout_s: float | None = None
    is_repeatable: bool = True
    """Whether a repeat has no further effect."""


class Transport:
    """HTTP requests to the service at one base URL, shared by all parts of a client."""

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
        self.base_url = checked_url(base_url)
        self.clock, self.rng, self.sleep = clock, rng, sleep
        self._key = checked_key(api_key)
        self._session = session
        self._is_ours = session is None
        self.timeout_s = timeout_s
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

    async def request(self, call: Call, read: Callable[[Any], T], *, retries: int | None = None) -> T:
        """Send a request and ``read`` its JSON response.

        Transient failures are retried as often as the policy allows, no sooner than the service requests (Retry-After).
        A request that is not repeatable is retried only where it certainly had no effect. Raises the error of the
        response, or UnreachableError.
        """
        most = self._retry.retries if retries is None else retries
        attempt = 0
        while True:
            attempt += 1
            try:
                text = await self._send_and_read(call)
            except AsyncBGError as error:
                asked_s = requested_delay_s(error) or 0
                may_repeat = (call.is_repeatable and is_transient(error)) or is_refusal(error) or _was_never_sent(error)
                if attempt > most or not may_repeat or asked_s > LONGEST_RETRY_AFTER_S:
                    raise
                await self.sleep(max(asked_s, self._retry.delay_s(attempt, self.rng)))
            else:
                return _parse_response(text, read, self.base_url + call.path)

    async def open_stream(self, call: Call) -> aiohttp.ClientResponse:
        """Return the unread response of a stream: its status is 200 or 204. Not retried; raises as ``request`` does."""
        response = await self._send(call)
        if response.status in {200, 204}:
            return response
        raise await self._refused(call, response)

    @contextmanager
    def reaching(self, path: str) -> Iterator[None]:
        """Raise network errors as UnreachableError; an invalid certificate as a ClientError, which is not retried."""
        url = self.base_url + path
        try:
            yield
        except aiohttp.ClientSSLError as error:
            raise ClientError(f"no safe connection to {url}: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = "it took too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise UnreachableError(url, reason) from error

    async def _send_and_read(self, call: Call) -> str:
        response = await self._send(call)
        if response.status not in _OK:
            raise await self._refused(call, response)
        return await self._text(call, response)

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        """Send a request and wait for the response headers. Redirects are not followed: they could leak the key."""
        if self._session is None or self._session.closed:
            raise ClientError("the client is not open; use it inside `async with Client(...) as client:`")
        headers, data = {"Accept": "application/json", **call.headers}, None
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        if call.body is not None:
            headers["Content-Type"], data = "application/json", json.dumps(call.body, allow_nan=False).encode()
        with self.reaching(call.path):
            async with asyncio.timeout(self.timeout_s if call.timeout_s is None else call.timeout_s):
                return await self._session.request(
                    call.method,
                    URL(self.base_url + call.path, encoded=True).with_query(call.params or None),
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    raise_for_status=False,
                    timeout=aiohttp.ClientTimeout(total=None),
                )

    async def _text(self, call: Call, response: aiohttp.ClientResponse) -> str:
        """Read the body of a response; the connection returns to the pool."""
        with self.reaching(call.path):
            async with asyncio.timeout(self.timeout_s), response:
                return (await response.read()).decode("utf-8", "replace")

    async def _refused(self, call: Call, response: aiohttp.ClientResponse) -> AsyncBGError:
        text = await self._text(call, response)
        return error_of(response.status, response.headers, text, about=call.about, now_ms=self.clock.now_ms())


def _was_never_sent(error: AsyncBGError) -> bool:
    """Whether the connection could not be opened."""
    refused = aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    return isinstance(error, UnreachableError) and isinstance(error.__cause__, refused)


def _parse_response(text: str, read: Callable[[Any], T], url: str) -> T:
    try:
        return read(json.loads(text))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        detail = f"the response of {url} is not one of asyncbg; check base_url and the version of the service"
        raise ApiError(200, "Not understood", detail) from error


# Backoff

BASE_S: Final = 0.25
CAP_S: Final = 30.0


class Outage:
    """The failures since the last response: the pause grows with them, with full jitter."""

    def __init__(self, *, clock: Clock, rng: random.Random, give_up_after_s: float | None) -> None:
        """``give_up_after_s`` limits an outage; None does not."""
        self._clock = clock
        self._rng = rng
        self._give_up_after_s = give_up_after_s
        self._began_ms: int | None = None
        self.failures = 0

    def end(self) -> None:
        """Note a response of the service."""
        self._began_ms, self.failures = None, 0

    def next_delay_s(self, error: AsyncBGError, *, at_least_s: float = 0) -> float:
        """Return the delay after ``error``: what the service requested, plus a growing random time.

        Raises ``error`` where the outage would take longer than allowed.
        """
        self.failures += 1
        least_s = max(at_least_s, requested_delay_s(error) or 0)
        policy = RetryPolicy(base_s=max(at_least_s, BASE_S), cap_s=max(at_least_s, CAP_S))
        delay_s = least_s + policy.delay_s(self.failures, self._rng)
        now_ms = self._clock.monotonic_ms()
        if self._began_ms is None:
            self._began_ms = now_ms
        if (
            self._give_up_after_s is not None
            and now_ms / 1000 + delay_s > self._began_ms / 1000 + self._give_up_after_s
        ):
            raise error
        return delay_s


class Deadline:
    """The time ``timeout_s`` from now, or never."""

    def __init__(self, clock: Clock, timeout_s: float | None) -> None:
        self._clock = clock
        self._at_ms = math.inf if timeout_s is None else clock.monotonic_ms() + timeout_s * 1000

    def left_s(self) -> float:
        """Return the seconds left; 0 after the deadline, infinite without one."""
        return max(self._at_ms - self._clock.monotonic_ms(), 0) / 1000
