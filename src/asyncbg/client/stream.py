"""One event stream as the user sees it: connections come and go, the events go on without a gap."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import aiohttp

from asyncbg.client.error import About, StreamError, UnreachableError, is_transient
from asyncbg.client.outage import Outage
from asyncbg.client.remote import OF_THE_STREAM, RemoteEvent
from asyncbg.client.sse_parser import SSEParser
from asyncbg.client.transport import Call, Transport
from asyncbg.client.wire import Params
from asyncbg.errors import AsyncBGError

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "text/event-stream"
RETRY_S: Final = 1.0
"""The pause before a reconnect until the service names one."""
FINAL_IDLE_S: Final = 5.0
"""A stream that is silent for so long after a final event is asked about: a server ends it at once."""
STABLE_S: Final = 5.0
"""A connection that lived so long was a success, also where nothing happened."""
WARN_AT: Final = 3
"""The failure in a row that is worth a warning, once an outage."""


class EventStream:
    """Reads one stream over as many connections as it takes, each from where the one before was cut.

    With a ``job_id`` it is that job's own: it ends after the job's final event, or where the service says that there
    is nothing more (204). Any other never ends by itself.
    """

    def __init__(
        self,
        transport: Transport,
        outage: Outage,
        path: str,
        *,
        params: Params,
        job_id: str | None,
        last_event_id: str | None,
        idle_s: float,
        max_frame_bytes: int,
    ) -> None:
        """Nothing is opened yet. Raises ValueError for a ``last_event_id`` that no header can carry."""
        if last_event_id and not {"\r", "\n", "\0"}.isdisjoint(last_event_id):
            raise ValueError("last_event_id should be the id of an event; no id holds a line break or a NUL")
        self._transport = transport
        self._outage = outage
        self._path = path
        self._params = params
        self._job_id = job_id
        self._idle_s = idle_s
        self._max_frame_bytes = max_frame_bytes
        self._parser = SSEParser(last_event_id=last_event_id or "")
        self._retry_s = RETRY_S
        self._response: aiohttp.ClientResponse | None = None
        self._connected_ms = 0
        self._is_at_final = False
        self._is_over = False

    async def events(self) -> AsyncGenerator[RemoteEvent, None]:
        """The events. Raises what ends the stream for good: StreamError, JobNotFoundError, ApiError, …"""
        try:
            while events := await self._next():
                for event in events:
                    yield event
        finally:
            self._hang_up()

    async def _next(self) -> Sequence[RemoteEvent]:
        """What comes next, over a new connection if need be; nothing where nothing will come any more."""
        while not self._is_over:
            try:
                if self._response is None:
                    await self._connect()
                elif events := self._take(await self._read(self._response)):
                    return events
            except AsyncBGError as error:
                self._hang_up()
                if not is_transient(error):
                    raise
                await self._pause(error)
        return ()

    async def _connect(self) -> None:
        """Open the stream after the last event that was seen."""
        cursor = self._parser.last_event_id
        self._parser = SSEParser(last_event_id=cursor, max_frame_bytes=self._max_frame_bytes)
        # Events come one by one: compression would gain little here, and a cut inside of it loses what was read.
        headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if cursor:
            headers["Last-Event-ID"] = cursor
        about = About(job_id=self._job_id or "")
        call = Call(path=self._path, params=self._params, headers=headers, about=about)
        self._response = response = await self._transport.open_stream(call)
        self._connected_ms = self._transport.clock.monotonic_ms()
        if response.status == 204:
            if self._job_id is None:
                raise StreamError(f"{self._transport.base_url}{self._path} says that no events will come (204)")
            self._is_over = True
        elif response.content_type != MEDIA_TYPE:
            raise StreamError(
                f"{self._transport.base_url}{self._path} answered {response.content_type} and no event stream; "
                "is base_url where asyncbg's routes are?"
            )

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The bytes that come next; none at the end. After a final event nothing more is to come but the end."""
        idle_s = min(self._idle_s, FINAL_IDLE_S) if self._is_at_final else self._idle_s
        with self._transport.reaching(self._path):
            async with asyncio.timeout(idle_s):
                return await response.content.readany()

    def _take(self, chunk: bytes) -> Sequence[RemoteEvent]:
        """The events in ``chunk``. Raises UnreachableError at an end that is not the stream's own."""
        if not chunk:
            self._is_over = self._is_at_final
            if not self._is_over:
                raise UnreachableError(self._transport.base_url + self._path, "the service ended the stream")
            return ()
        frames = self._parser.feed(chunk)
        if self._parser.retry_ms is not None:
            self._retry_s = self._parser.retry_ms / 1000
        events = [RemoteEvent.from_frame(frame) for frame in frames if frame.event not in OF_THE_STREAM]
        if frames:
            self._is_at_final = self._job_id is not None and bool(events) and events[-1].is_final
        if events or self._transport.clock.monotonic_ms() - self._connected_ms >= STABLE_S * 1000:
            self._outage.end()
        return events

    async def _pause(self, error: AsyncBGError) -> None:
        """Wait for the next try: never sooner than the service asked. Raises ``error`` where it was away too long."""
        if isinstance(error, UnreachableError):
            error.last_event_id = self._parser.last_event_id or None
        delay_s = self._outage.next_delay_s(error, at_least_s=self._retry_s)
        level = logging.WARNING if self._outage.failures == WARN_AT else logging.INFO
        _log.log(level, "an event stream is resumed in %.1f s: %s", delay_s, error)
        await self._transport.sleep(delay_s)

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
