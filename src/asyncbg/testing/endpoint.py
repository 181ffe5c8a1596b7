"""The endpoint under test, in this process or at a URL, with the means to create events on it."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import aiohttp

from asyncbg.testing.frames import Frame
from asyncbg.testing.stream import ASGIApp, EventReader, stream

MakeEvent = Callable[[], Any]
Opener = Callable[..., AbstractAsyncContextManager[EventReader]]
EVENT_STREAM = "text/event-stream"


class CheckFailedError(AssertionError):
    """The endpoint does not meet the requirement of the check."""


class CheckSkippedError(Exception):
    """The check does not apply to this endpoint or this run."""


def fail(reason: str) -> NoReturn:
    """Fail the current check."""
    raise CheckFailedError(reason)


def skip(reason: str) -> NoReturn:
    """Skip the current check."""
    raise CheckSkippedError(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The path of the stream, the way to create an event with an id, and the timeout."""

    opener: Opener
    path: str
    timeout_s: float
    make_event: MakeEvent | None = None
    ended: str | None = None
    heartbeat_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def open(
        self,
        *,
        path: str | None = None,
        method: str = "GET",
        last_event_id: str | None = None,
        encoding: str = "identity",
    ) -> AsyncIterator[EventReader]:
        """Request the stream like an EventSource."""
        headers = {"accept": EVENT_STREAM, "accept-encoding": encoding, "cache-control": "no-store", **self.headers}
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        async with self.opener(path or self.path, method=method, headers=headers) as reader:
            yield reader

    async def make(self, count: int = 1) -> None:
        """Create events. Skips the check without ``make_event``."""
        if self.make_event is None:
            skip("make_event= was not given")
        for _ in range(count):
            made = self.make_event()
            if inspect.isawaitable(made):
                await made

    async def collect(self, reader: EventReader, count: int, *, what: str = "events with an id") -> list[Frame]:
        """Return the next ``count`` events with an id. Fails the check if fewer arrive in time."""
        found: list[Frame] = []
        await self.with_timeout(self._collect(reader, count, found), lambda: f"{len(found)} of {count} {what} arrived")
        if len(found) < count:
            fail(f"the stream ended after {len(found)} of {count} {what}")
        return found

    async def with_timeout(self, work: Awaitable[Any], so_far: Callable[[], str]) -> Any:
        """Await ``work``. Fails the check on timeout."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await work
        except TimeoutError:
            fail(f"{so_far()} within {self.timeout_s:g} s")

    @staticmethod
    async def _collect(reader: EventReader, count: int, found: list[Frame]) -> None:
        while len(found) < count and (frame := await reader.frame()) is not None:
            if frame.is_event and frame.id is not None:
                found.append(frame)


def in_process(app: ASGIApp, timeout_s: float) -> Opener:
    """Return an opener for streams of an application in this process."""

    def open_one(path: str, *, method: str, headers: Mapping[str, str]) -> AbstractAsyncContextManager[EventReader]:
        return stream(app, path, method=method, headers=headers, timeout_s=timeout_s, release_s=timeout_s)

    return open_one


def over_http(session: aiohttp.ClientSession, base_url: str, timeout_s: float) -> Opener:
    """Return an opener for streams of a server; the session must not decompress responses."""

    @asynccontextmanager
    async def open_one(path: str, *, method: str, headers: Mapping[str, str]) -> AsyncIterator[EventReader]:
        async with asyncio.timeout(timeout_s):
            response = await session.request(
                method, base_url.rstrip("/") + path, headers=headers, allow_redirects=False
            )
        try:
            names = {name.lower(): value for name, value in response.headers.items()}
            yield EventReader(response.status, names, response.content.readany)
        finally:
            response.close()

    return open_one
