"""The client's HTTP side: one session, one base URL, and requests repeated only where nothing is done twice."""

import asyncio
import json
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
    """One request to make. ``path`` is below the base URL, and encoded; ``timeout_s`` a bound of its own."""

    method: str = "GET"
    path: str
    params: Params = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    about: About = field(default_factory=About)
    timeout_s: float | None = None
    is_repeatable: bool = True
    """Whether it may be carried out twice."""


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
        """Make a request and ``read`` its JSON answer.

        It is made again after a failure that may pass: as often as the policy says, no sooner than the service asks
        (Retry-After); one that is not repeatable only where it was surely not carried out. Raises what the answer
        stands for, or UnreachableError.
        """
        most = self._retry.retries if retries is None else retries
        attempt = 0
        while True:
            attempt += 1
            try:
                text = await self._answer(call)
            except AsyncBGError as error:
                asked_s = requested_delay_s(error) or 0
                may_repeat = (call.is_repeatable and is_transient(error)) or is_refusal(error) or _was_never_sent(error)
                if attempt > most or not may_repeat or asked_s > LONGEST_RETRY_AFTER_S:
                    raise
                await self.sleep(max(asked_s, self._retry.delay_s(attempt, self.rng)))
            else:
                return _understood(text, read, self.base_url + call.path)

    async def open_stream(self, call: Call) -> aiohttp.ClientResponse:
        """The response of a stream, unread: its status is 200 or 204. Once; raises as ``request`` does."""
        response = await self._send(call)
        if response.status in {200, 204}:
            return response
        raise await self._refused(call, response)

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

    async def _answer(self, call: Call) -> str:
        response = await self._send(call)
        if response.status not in _OK:
            raise await self._refused(call, response)
        return await self._text(call, response)

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer. A redirect is not followed: it may lead the key away."""
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
        """The body of an answer; the connection goes back to the pool."""
        with self.reaching(call.path):
            async with asyncio.timeout(self.timeout_s), response:
                return (await response.read()).decode("utf-8", "replace")

    async def _refused(self, call: Call, response: aiohttp.ClientResponse) -> AsyncBGError:
        text = await self._text(call, response)
        return error_of(response.status, response.headers, text, about=call.about, now_ms=self.clock.now_ms())


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
