"""Event streams over HTTP (Server-Sent Events, WHATWG HTML section 9.2): replay from the log, then live from the bus.

Every stream subscribes to the bus, reads the log from its cursor up to the position at which it subscribed, and then
sends live events. A stream whose subscription overflows resumes from the log, so no stored event is ever lost.
"""

import asyncio
import logging
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from asyncbg.bus import Chunk, Published, Subscription
from asyncbg.core.event import FINAL_EVENTS, Event, EventType, encode, event_id
from asyncbg.engine import Engine
from asyncbg.errors import DatabaseError, JobNotFoundError
from asyncbg.streams.connection import Connection
from asyncbg.streams.progress_throttle import ProgressThrottle
from asyncbg.streams.send_batcher import SendBatcher
from asyncbg.streams.sse_format import MEDIA_TYPE, RAW_HEADERS, notice_frame, progress_frame
from asyncbg.streams.stream_query import StreamQuery, find_jobs, has_ended, job_summary

_log = logging.getLogger(__name__)

DEFERRED: Final = "asyncbg.deferred"
"""The ASGI scope key of a list: a stream appends the coroutine function that runs it once FastAPI has returned."""
_PAGE = 500
_POSITION_S: Final = 1.0
"""How long a stream that starts now waits for an event to carry its position before it sends the position itself."""
_ENDS_ATTEMPT = FINAL_EVENTS | {EventType.RETRYING}


class EventStreamResponse(Response):
    """The response of one event stream.

    Not FastAPI's EventSourceResponse: all subscribers get the same encoded bytes, and one send carries many events.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        query: StreamQuery,
        engine: Engine,
        *,
        batcher: SendBatcher,
        rng: random.Random,
        on_open: Callable[["EventStreamResponse"], None],
        on_close: Callable[["EventStreamResponse"], None],
    ) -> None:
        """Stream what ``query`` selects. ``on_open`` may raise OverloadedError; ``on_close`` follows each ``on_open``.

        Nothing happens before the response is called.
        """
        self.status_code = 200
        self.background = None
        self.raw_headers = list(RAW_HEADERS[query.gzip])
        self.query = query
        self.is_stalled = False
        """Whether the stream was aborted because its client read nothing."""
        self.connection: Connection
        """The client's connection, once the response was called."""
        self._engine = engine
        self._batcher = batcher
        self._rng = rng
        self._on_open, self._on_close = on_open, on_close
        self._settings = engine.settings.stream
        self._epoch = engine.backend.epoch
        self._cursor = self._client_seq = query.after_seq
        self._must_send_position = query.starts_now
        self._job_ended = False
        self._close_reason: str | None = None
        self._throttle = ProgressThrottle(self._settings.progress_per_s)
        self._gzip = _compressor() if query.gzip else None
        self._sent_at = self._expires_at = self._sending_since = math.inf
        self._subscription: Subscription | None = None
        self._timeout: asyncio.Timeout | None = None
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the job ends, the client leaves or stalls, or the stream is closed. Raise OverloadedError."""
        self._send = send
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        now = asyncio.get_running_loop().time()
        # Up to a tenth less than the setting, so that streams opened together do not all end at once.
        self._expires_at = now + self._settings.max_age_s * self._rng.uniform(0.9, 1)
        self.connection = Connection(receive, now=now)
        self._on_open(self)
        if (deferred := scope.get(DEFERRED)) is None:
            await self._run(start, receive)
        else:
            deferred.append(partial(self._run, start))

    def check_deadlines(self, now: float, *, send_timeout_s: float) -> None:
        """Abort a stream whose client has read nothing for ``send_timeout_s``; wake one with a heartbeat or end due."""
        stalled_for_s = self.connection.stalled_for_s(now)
        if (now - self._sending_since if stalled_for_s is None else stalled_for_s) >= send_timeout_s:
            self.is_stalled = True
            self.abort()
        elif now >= min(self._sent_at + self._settings.heartbeat_s, self._expires_at):
            self._wake()

    def close(self, reason: str) -> None:
        """End the stream with a ``stream.bye`` frame that names ``reason``; the first reason counts."""
        self._close_reason = self._close_reason or reason
        self._wake()

    def abort(self) -> None:
        """End the stream and its connection at once, without waiting for the client."""
        self.connection.abort()
        self._cancel()

    def _wake(self) -> None:
        if self._subscription is not None:
            self._subscription.wake()

    def _cancel(self) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def _run(self, start: Message, receive: Receive) -> None:
        self.connection = Connection(receive, now=asyncio.get_running_loop().time())
        try:
            await self._send(start)
            async with asyncio.timeout(None) as self._timeout:  # a task group would take 2 KiB more
                watching = asyncio.create_task(self._cancel_on_disconnect(receive), name="asyncbg-stream-client")
                try:
                    await self._serve()
                finally:
                    watching.cancel()
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise
        finally:
            self._on_close(self)

    async def _cancel_on_disconnect(self, receive: Receive) -> None:
        """Only ``receive`` reports that a client left; a server's ``send`` may succeed all the same."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel()

    async def _serve(self) -> None:
        try:
            if self.query.follow:
                with self._engine.bus.subscribe(self.query.wanted) as self._subscription:
                    await self._replay_stored()
                    await self._stream_live(self._subscription)
            else:
                await self._replay_stored()
            if not self._job_ended and (self.query.follow or self._is_closing()):
                await self._send_chunk(self._bye_frame())
            await self._send_chunk(b"", more=False)
        except (OSError, DatabaseError) as error:
            # The client reconnects with its cursor, so it misses no event.
            _log.info("an event stream ended early: %s", type(error).__name__)

    async def _replay_stored(self) -> None:
        """Send the opening lines, then the stored events.

        The opening lines belong to the first frame: a blank line after them would end a block without data, which
        httpx-sse and fetch-event-source report as an event. So they hold the position only where no other frame carries
        it: a client with a cursor knows its position, and a job's stream begins with a stored event.
        """
        position = b"id: %s\n" % self._event_id() if self._must_send_position else b""
        await self._send_chunk(b": asyncbg\nretry: %d\n%s" % (self._settings.retry_ms, position))
        if self.query.reset_reason is not None:
            await self._send_reset(self.query.reset_reason)
        if self._job_ended:
            return
        published_seq = self._engine.bus.last_seq if self.query.follow else 0
        await self._replay(max(self.query.log_seq, published_seq))

    async def _stream_live(self, subscription: Subscription) -> None:
        """Send events as they are published, all that are pending in one send, until the stream ends."""
        loop = asyncio.get_running_loop()
        while not self._job_ended and not self._is_closing() and (now := loop.time()) < self._expires_at:
            seq = self._cursor
            if subscription.lagging:
                subscription.reset()
                await self._resume_from_log()
            elif chunk := self._collect(subscription.take_chunks(), now):
                await self._send_chunk(self._with_position(chunk, seq))
                if pause_s := self._pause_s(loop.time()):
                    await asyncio.sleep(pause_s)
            elif now >= self._sent_at + self._idle_s():
                await self._send_chunk(self._heartbeat_frame())
            else:  # ``check_deadlines`` wakes the stream for a heartbeat and at its maximum age
                due_at = self._due_at()
                await subscription.wait(None if due_at is None else max(due_at - now, 0))

    def _idle_s(self) -> float:
        """Return after how many seconds without an event the stream sends a heartbeat."""
        heartbeat_s = self._settings.heartbeat_s
        return min(heartbeat_s, _POSITION_S) if self._must_send_position else heartbeat_s

    def _due_at(self) -> float | None:
        """Return when held progress, or the position of a stream that starts now, has to be sent."""
        due_at = self._throttle.next_due()
        if not self._must_send_position:
            return due_at
        return min(self._sent_at + self._idle_s(), math.inf if due_at is None else due_at)

    def _pause_s(self, now: float) -> float:
        """Return the pause that lets more events into the next send; none before the end of the stream."""
        return 0.0 if self._job_ended else self._batcher.pause_s(now)

    async def _resume_from_log(self) -> None:
        """Replay the log after an overflow; send a reset where the log no longer reaches back to the cursor."""
        position = await self._engine.backend.position()
        if self.query.job_id is None and self._cursor < position.first_seq - 1:
            self._cursor = position.last_seq
            await self._send_reset("unreachable")
        await self._replay(max(self._engine.bus.last_seq, position.last_seq))

    async def _replay(self, up_to_seq: int) -> None:
        """Send the stored events up to ``up_to_seq``; a job's stream gets its latest progress before a final event."""
        progress, last = await self._latest_progress(), b""
        while self._cursor < up_to_seq and not self._is_closing():
            events, reached = await self._engine.backend.events(
                after_seq=self._cursor, wanted=self.query.wanted, limit=_PAGE, up_to_seq=up_to_seq
            )
            frames = [encode(event, self._epoch) for event in events]
            if frames:
                self._job_ended = self.query.job_id is not None and events[-1].is_final
                frames.insert(0, last)
                last = frames.pop() if self._job_ended else b""
                self._client_seq = events[-1].seq
                await self._send_chunk(b"".join(frames))
            if reached <= self._cursor:
                break
            self._cursor = reached
        await self._send_chunk(progress + last)

    async def _latest_progress(self) -> bytes:
        """Return a frame with the job's current progress, and drop pending progress of the bus, which is older."""
        if self.query.job_id is None:
            return b""
        try:
            record = await self._engine.get(self.query.job_id)
        except JobNotFoundError:  # purged since the stream was opened
            return b""
        if self._subscription is not None:
            self._subscription.drop_progress()
        self._throttle.release(record.id)
        self._throttle.note_sent(record.id, asyncio.get_running_loop().time())
        return progress_frame(record, self._epoch, self._engine.clock.now_ms())

    def _collect(self, pending: Sequence[Chunk], now: float) -> bytes:
        """Return the frames to send now: each stored event once, and progress as the throttle allows."""
        if not pending and self._throttle.is_idle:
            return b""
        frames: list[bytes] = []
        for chunk in pending:
            first = chunk.published[0]
            if chunk.is_progress:
                if self._throttle.admit(first, now):
                    frames.append(first.wire(self._epoch))
            elif first.event.seq > self._cursor and not self._throttle.is_holding:
                frames.append(chunk.wire(self._epoch))
                self._note_sent(chunk.published[-1].event)
            else:
                frames += self._collect_each(chunk.published)
        if not self._throttle.is_idle:
            frames += [held.wire(self._epoch) for held in self._throttle.due(now)]
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _collect_each(self, stored: list[Published]) -> Iterator[bytes]:
        """Yield the frames of new events; an event that ends an attempt comes after the attempt's held progress."""
        for published in stored:
            event = published.event
            if event.seq > self._cursor:
                if event.type in _ENDS_ATTEMPT and (held := self._throttle.release(event.job_id)) is not None:
                    yield held.wire(self._epoch)
                yield published.wire(self._epoch)
                self._note_sent(event)

    def _note_sent(self, event: Event) -> None:
        self._cursor = self._client_seq = event.seq
        self._job_ended = self.query.job_id is not None and event.type in FINAL_EVENTS

    def _is_closing(self) -> bool:
        return self._close_reason is not None or (self._subscription is not None and self._subscription.closing)

    def _heartbeat_frame(self) -> bytes:
        """Return a comment, or the position where the client's is old; a job's stream resumes from any position."""
        self._cursor = max(self._cursor, self._engine.bus.last_seq)
        if self._must_send_position:
            return self._with_position(b"", self._cursor)
        if self._cursor == self._client_seq or self.query.job_id is not None:
            return b": heartbeat\n"
        return self._position_frame("idle", self._cursor)

    def _with_position(self, chunk: bytes, seq: int) -> bytes:
        """Put position ``seq`` before ``chunk`` where the client knows none and ``chunk`` does not begin with one."""
        is_missing, self._must_send_position = self._must_send_position, False
        return self._position_frame("start", seq) + chunk if is_missing and not chunk.startswith(b"id: ") else chunk

    def _position_frame(self, reason: str, seq: int) -> bytes:
        self._client_seq = max(self._client_seq, seq)
        return self._notice("stream.position", {"reason": reason}, head=f"id: {event_id(self._epoch, seq)}\n")

    def _bye_frame(self) -> bytes:
        """The ``retry:`` is spread over one more retry interval, so that clients do not all reconnect at once."""
        retry_ms = int(self._settings.retry_ms * self._rng.uniform(1, 2))
        is_old = asyncio.get_running_loop().time() >= self._expires_at
        reason = self._close_reason or ("age" if is_old else "shutdown")
        return self._notice("stream.bye", {"reason": reason, "retry_ms": retry_ms}, head=f"retry: {retry_ms}\n")

    async def _send_reset(self, reason: str) -> None:
        """Send a frame that says that events may be missing, with the current state of the matching jobs."""
        records, is_complete = await find_jobs(self._engine.backend, self.query.wanted)
        data = {"reason": reason, "jobs": [job_summary(record) for record in records], "complete": is_complete}
        await self._send_chunk(self._notice("stream.reset", data, head=f"id: {self._event_id().decode()}\n"))
        if self.query.job_id is not None and records:
            self._job_ended = await has_ended(self._engine.backend, records[0], self._cursor)

    def _notice(self, kind: str, data: Mapping[str, Any], *, head: str) -> bytes:
        return notice_frame(kind, data, head=head, job_id=self.query.job_id, now_ms=self._engine.clock.now_ms())

    def _event_id(self) -> bytes:
        return event_id(self._epoch, self._cursor).encode()

    async def _send_chunk(self, chunk: bytes, *, more: bool = True) -> None:
        """Send ``chunk``, compressed and flushed. ``check_deadlines`` aborts a send that the client does not read."""
        if more and not chunk:
            return
        if self._gzip is not None:
            chunk = self._gzip.compress(chunk) + self._gzip.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)
        self._sending_since = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        self._sent_at, self._sending_since = self._sending_since, math.inf
        self.connection.bytes_sent(len(chunk))


def _compressor() -> "zlib._Compress":
    """Return a gzip compressor (RFC 1952) with a window of 4 KiB: it takes 32 KiB of memory a stream instead of 256."""
    return zlib.compressobj(level=6, wbits=16 + 12, memLevel=5)
