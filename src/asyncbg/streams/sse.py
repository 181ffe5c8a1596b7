"""Event streams over HTTP (Server-Sent Events, WHATWG HTML section 9.2): replay from the log, then live from the bus.

Every stream follows the same story: subscribe to the bus, read the log from the cursor up to what was published when
it subscribed, go on live. A stream that overflows its buffer goes back to the log, so nothing stored is ever lost.
"""

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from asyncbg.bus import Chunk, Published, Subscription
from asyncbg.core.event import FINAL_EVENTS, Event, EventType, encode, event_id
from asyncbg.errors import DatabaseError, JobNotFoundError
from asyncbg.streams.connection import Connection
from asyncbg.streams.delivery import Delivery
from asyncbg.streams.open_streams import OpenStreams
from asyncbg.streams.pacing import ProgressPacer
from asyncbg.streams.stream_frame import notice_frame, progress_frame
from asyncbg.streams.view import View, has_ended, jobs_in_view, standing

_log = logging.getLogger(__name__)

LATER: Final = "asyncbg.later"
"""Where in the scope a stream finds the list of what runs, with the server's own ``receive``, when FastAPI is done."""
_PAGE = 500
_POSITION_S: Final = 1.0
"""How long a stream that starts now waits for an event to carry its position before it tells it by itself."""
_ENDS_ATTEMPT = FINAL_EVENTS | {EventType.RETRYING}


class EventStream(Delivery):
    """One stream: what of the log and of the bus it shows, in which order."""

    def __init__(self, streams: OpenStreams, view: View, status_code: int = 200) -> None:
        """Show ``view``; nothing happens before the response is called."""
        super().__init__(view, status_code)
        self._streams = streams
        self._engine = streams.engine
        self._epoch = self._engine.backend.epoch
        self._cursor = self._told = view.after_seq
        self._owes_position = view.starts_now
        self._is_over = False
        self._pacer = ProgressPacer(streams.settings.progress_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the job is over, the client is gone or stalls, or the process stops. Raises OverloadedError."""
        self._send = send
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        now = asyncio.get_running_loop().time()
        self._ends_at = now + self._streams.age_s()
        self.connection = Connection(receive, now=now)
        self._streams.add(self)
        if (later := scope.get(LATER)) is None:
            await self._run(start, receive)
        else:
            later.append(partial(self._run, start))

    async def _run(self, start: Message, receive: Receive) -> None:
        self.connection = Connection(receive, now=asyncio.get_running_loop().time())
        try:
            await self._send(start)
            async with asyncio.timeout(None) as self._limit:  # a task group would take 2 KiB more
                watching = asyncio.create_task(self._watch_client(receive), name="asyncbg-stream-client")
                try:
                    await self._serve()
                finally:
                    watching.cancel()
        except TimeoutError:
            if self._limit is None or not self._limit.expired():
                raise
        finally:
            self._streams.remove(self)
            if self._is_stalled:
                self._streams.note_stall()

    async def _serve(self) -> None:
        try:
            if self.view.follow:
                with self._engine.bus.subscribe(self.view.wanted) as self._subscription:
                    await self._open()
                    await self._go_on(self._subscription)
            else:
                await self._open()
            if not self._is_over and (self.view.follow or self._is_stopping()):
                await self._put(self._bye())
            await self._put(b"", more=False)
        except (OSError, DatabaseError) as error:
            # The client comes back with its cursor, and then misses nothing.
            _log.info("an event stream ended early: %s", type(error).__name__)

    async def _open(self) -> None:
        """The first bytes, then what is stored.

        The lines of the opening belong to the first frame: a blank line behind them would end a block without data,
        which httpx-sse and fetch-event-source hand on as an event. So the position stands in them only where no other
        frame need carry it: a client with a cursor has it, and a job's story begins with an event that was stored.
        """
        position = b"id: %s\n" % self._position() if self._owes_position else b""
        await self._put(b": asyncbg\nretry: %d\n%s" % (self._streams.settings.retry_ms, position))
        if self.view.reset_reason is not None:
            await self._tell_reset(self.view.reset_reason)
        if self._is_over:
            return
        published_seq = self._engine.bus.last_seq if self.view.follow else 0
        await self._catch_up(max(self.view.log_seq, published_seq))

    async def _go_on(self, subscription: Subscription) -> None:
        """Live, until the job is over, the stream is old or the process stops. All that is pending goes in one send."""
        loop = asyncio.get_running_loop()
        while not self._is_over and not self._is_stopping() and (now := loop.time()) < self._ends_at:
            seq = self._cursor
            if subscription.lagging:
                subscription.reset()
                await self._come_back()
            elif chunk := self._collect(subscription.take_chunks(), now):
                await self._put(self._with_position(chunk, seq))
                if pause_s := self._pause_s(loop.time()):
                    await asyncio.sleep(pause_s)
            elif now >= self._sent_at + self._idle_s():
                await self._put(self._heartbeat())
            else:  # a heartbeat and the end are told by ``look_at_time``
                due_at = self._due_at()
                await subscription.wait(None if due_at is None else max(due_at - now, 0))

    def _idle_s(self) -> float:
        """After how long without anything to send something is sent."""
        heartbeat_s = self._streams.settings.heartbeat_s
        return min(heartbeat_s, _POSITION_S) if self._owes_position else heartbeat_s

    def _due_at(self) -> float | None:
        """When held progress has to go, or the position of a stream that starts now."""
        due_at = self._pacer.next_due()
        if not self._owes_position:
            return due_at
        return min(self._sent_at + self._idle_s(), math.inf if due_at is None else due_at)

    def _pause_s(self, now: float) -> float:
        """Under load more comes together before the next send; nothing is held up at the end."""
        return 0.0 if self._is_over else self._streams.gathering.pause_s(now)

    async def _come_back(self) -> None:
        """After an overflow: on from the log, unless even that goes on later than where this stream is."""
        position = await self._engine.backend.position()
        if self.view.job_id is None and self._cursor < position.first_seq - 1:
            self._cursor = position.last_seq
            await self._tell_reset("unreachable")
        await self._catch_up(max(self._engine.bus.last_seq, position.last_seq))

    async def _catch_up(self, up_to_seq: int) -> None:
        """Send what is stored up to ``up_to_seq``; on a job's stream its latest progress too, before its end."""
        progress, last = await self._latest_progress(), b""
        while self._cursor < up_to_seq and not self._is_stopping():
            events, reached = await self._engine.backend.events(
                after_seq=self._cursor, wanted=self.view.wanted, limit=_PAGE, up_to_seq=up_to_seq
            )
            frames = [encode(event, self._epoch) for event in events]
            if frames:
                self._is_over = self.view.job_id is not None and events[-1].is_final
                frames.insert(0, last)
                last = frames.pop() if self._is_over else b""
                self._told = events[-1].seq
                await self._put(b"".join(frames))
            if reached <= self._cursor:
                break
            self._cursor = reached
        await self._put(progress + last)

    async def _latest_progress(self) -> bytes:
        """A job's progress as it is now. What the bus told before is older, and is dropped."""
        if self.view.job_id is None:
            return b""
        try:
            record = await self._engine.get(self.view.job_id)
        except JobNotFoundError:  # purged since the stream was opened
            return b""
        if self._subscription is not None:
            self._subscription.drop_progress()
        self._pacer.release(record.id)
        self._pacer.note(record.id, asyncio.get_running_loop().time())
        return progress_frame(record, self._epoch, self._engine.clock.now_ms())

    def _collect(self, pending: Sequence[Chunk], now: float) -> bytes:
        """The frames to send now: stored events always and once, progress at its pace and before the end it led to."""
        if not pending and self._pacer.is_idle:
            return b""
        frames: list[bytes] = []
        for chunk in pending:
            first = chunk.published[0]
            if chunk.is_progress:
                if self._pacer.admit(first, now):
                    frames.append(first.wire(self._epoch))
            elif first.event.seq > self._cursor and not self._pacer.is_holding:
                frames.append(chunk.wire(self._epoch))
                self._note_sent(chunk.published[-1].event)
            else:
                frames += self._collect_each(chunk.published)
        if not self._pacer.is_idle:
            frames += [held.wire(self._epoch) for held in self._pacer.due(now)]
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _collect_each(self, stored: list[Published]) -> Iterator[bytes]:
        for published in stored:
            event = published.event
            if event.seq > self._cursor:
                if event.type in _ENDS_ATTEMPT and (held := self._pacer.release(event.job_id)) is not None:
                    yield held.wire(self._epoch)
                yield published.wire(self._epoch)
                self._note_sent(event)

    def _note_sent(self, event: Event) -> None:
        self._cursor = self._told = event.seq
        self._is_over = self.view.job_id is not None and event.type in FINAL_EVENTS

    def _is_stopping(self) -> bool:
        return (
            self._is_revoked
            or self._streams.is_draining
            or (self._subscription is not None and self._subscription.closing)
        )

    def _heartbeat(self) -> bytes:
        """A comment, or the position where the client does not know it; one job's stream goes on from any position."""
        self._cursor = max(self._cursor, self._engine.bus.last_seq)
        if self._owes_position:
            return self._with_position(b"", self._cursor)
        if self._cursor == self._told or self.view.job_id is not None:
            return b": heartbeat\n"
        return self._position_frame("idle", self._cursor)

    def _with_position(self, chunk: bytes, seq: int) -> bytes:
        """``chunk``, behind the position before it where that is still owed and no stored event comes first."""
        owes, self._owes_position = self._owes_position, False
        return self._position_frame("start", seq) + chunk if owes and not chunk.startswith(b"id: ") else chunk

    def _position_frame(self, reason: str, seq: int) -> bytes:
        self._told = max(self._told, seq)
        return self._notice("stream.position", {"reason": reason}, head=f"id: {event_id(self._epoch, seq)}\n")

    def _bye(self) -> bytes:
        retry_ms = self._streams.bye_retry_ms()
        is_old = asyncio.get_running_loop().time() >= self._ends_at
        reason = "age" if is_old and not self._streams.is_draining else "shutdown"
        data = {"reason": "revoked" if self._is_revoked else reason, "retry_ms": retry_ms}
        return self._notice("stream.bye", data, head=f"retry: {retry_ms}\n")

    async def _tell_reset(self, reason: str) -> None:
        """Say that events may be missing, and how the jobs in view stand now."""
        records, is_complete = await jobs_in_view(self._engine.backend, self.view.wanted)
        data = {"reason": reason, "jobs": [standing(record) for record in records], "complete": is_complete}
        await self._put(self._notice("stream.reset", data, head=f"id: {self._position().decode()}\n"))
        if self.view.job_id is not None and records:
            self._is_over = await has_ended(self._engine.backend, records[0], self._cursor)

    def _notice(self, kind: str, data: Mapping[str, Any], *, head: str) -> bytes:
        return notice_frame(kind, data, head=head, job_id=self.view.job_id, now_ms=self._engine.clock.now_ms())

    def _position(self) -> bytes:
        return event_id(self._epoch, self._cursor).encode()
