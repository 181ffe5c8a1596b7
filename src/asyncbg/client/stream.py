"""An event stream that survives lost connections: it resumes after the last event, without a gap."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import aiohttp

from asyncbg.client.error import About, StreamError, UnreachableError, is_transient
from asyncbg.client.remote import OF_THE_STREAM, RemoteEvent
from asyncbg.client.sse_parser import SSEParser
from asyncbg.client.transport import Call, Outage, Transport
from asyncbg.client.wire import Params
from asyncbg.errors import AsyncBGError

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "text/event-stream"
RETRY_S: Final = 1.0
"""The pause before a reconnect until the service names one."""
FINAL_IDLE_S: Final = 5.0
"""A stream that is idle for so long after a final event is reopened: a server ends it immediately."""
STABLE_S: Final = 5.0
"""A connection of this age counts as a success, also without an event."""
WARN_AT: Final = 3
"""The consecutive failure that is logged as a warning, once an outage."""


class ResumingStream:
    """One stream over any number of connections, each resumed where the one before was cut off.

    With a ``job_id`` it ends after the final event of that job, or where the service has no more events (204). Any
    other stream never ends.
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
        self._is_ended = False

    async def events(self) -> AsyncGenerator[RemoteEvent, None]:
        """Iterate over the events. Raises what ends the stream: StreamError, JobNotFoundError, ApiError, …"""
        try:
            while events := await self._next():
                for event in events:
                    yield event
        finally:
            self._disconnect()

    async def _next(self) -> Sequence[RemoteEvent]:
        """Return the next events, over a new connection if needed; none at the end of the stream."""
        while not self._is_ended:
            try:
                if self._response is None:
                    await self._connect()
                elif events := self._parse(await self._read(self._response)):
                    return events
            except AsyncBGError as error:
                self._disconnect()
                if not is_transient(error):
                    raise
                await self._pause(error)
        return ()

    async def _connect(self) -> None:
        """Open the stream after the last event that was seen."""
        cursor = self._parser.last_event_id
        self._parser = SSEParser(last_event_id=cursor, max_frame_bytes=self._max_frame_bytes)
        # Events arrive one by one: compression would gain little, and a cut connection would lose buffered data.
        headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if cursor:
            headers["Last-Event-ID"] = cursor
        about = About(job_id=self._job_id or "")
        call = Call(path=self._path, params=self._params, headers=headers, about=about)
        self._response = response = await self._transport.open_stream(call)
        self._connected_ms = self._transport.clock.monotonic_ms()
        if response.status == 204:
            if self._job_id is None:
                raise StreamError(f"{self._transport.base_url}{self._path} responded that it has no more events (204)")
            self._is_ended = True
        elif response.content_type != MEDIA_TYPE:
            raise StreamError(
                f"{self._transport.base_url}{self._path} responded with {response.content_type} and no event stream; "
                "check that base_url includes the prefix of asyncbg's routes"
            )

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the next bytes; none at the end. After a final event only the end is expected."""
        idle_s = min(self._idle_s, FINAL_IDLE_S) if self._is_at_final else self._idle_s
        with self._transport.reaching(self._path):
            async with asyncio.timeout(idle_s):
                return await response.content.readany()

    def _parse(self, chunk: bytes) -> Sequence[RemoteEvent]:
        """Return the events in ``chunk``. Raises UnreachableError where the stream was cut off."""
        if not chunk:
            self._is_ended = self._is_at_final
            if not self._is_ended:
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
        """Wait at least as long as the service requested. Raises ``error`` where the outage is too long."""
        if isinstance(error, UnreachableError):
            error.last_event_id = self._parser.last_event_id or None
        delay_s = self._outage.next_delay_s(error, at_least_s=self._retry_s)
        level = logging.WARNING if self._outage.failures == WARN_AT else logging.INFO
        _log.log(level, "an event stream is resumed in %.1f s: %s", delay_s, error)
        await self._transport.sleep(delay_s)

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
