"""Event streams over HTTP (Server-Sent Events, WHATWG HTML section 9.2): replay from the log, then live from the bus.

Every stream follows the same story: subscribe to the bus, read the log from the cursor up to what was published when
it subscribed, go on live. A stream that overflows its buffer goes back to the log, so nothing stored is ever lost.
"""

import asyncio
import json
import logging
import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from asyncbg.api.auth import Caller
from asyncbg.api.connection import Connection
from asyncbg.api.gathering import Gathering
from asyncbg.api.pacing import ProgressPacer
from asyncbg.api.view import View, has_ended, jobs_in_view, standing, start_of
from asyncbg.background import Engine
from asyncbg.bus import Chunk, Published, Subscription
from asyncbg.clock import rfc3339
from asyncbg.errors import DatabaseError, JobNotFoundError, OverloadedError
from asyncbg.event import FINAL_EVENTS, Event, EventFilter, EventType, dump, encode, event_id
from asyncbg.job import ANONYMOUS, JobRecord

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "text/event-stream"
LATER: Final = "asyncbg.later"
"""Where in the scope a stream finds the list of what runs, with the server's own ``receive``, when FastAPI is done."""
SEND_TIMEOUT_S: Final = 28.0
"""Looked at each second, on a busy machine a little later: who takes nothing is closed within 30 s."""
BYE_TIMEOUT_S: Final = 0.8
REVOKED_S: Final = 0.3
RETRY_AFTER_S: Final = 5.0
_LONGEST_SWEEP_S = 1.0
_PAGE = 500
_ENDS_ATTEMPT = FINAL_EVENTS | {EventType.RETRYING}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatistics:
    """Streams open now, and counts since the start."""

    open: int
    opened: int
    refused: int
    stalled: int


class Streams:
    """All event streams of this process: opens them within the caps, and ends them at shutdown."""

    def __init__(
        self, engine: Engine, *, rng: random.Random | None = None, send_timeout_s: float = SEND_TIMEOUT_S
    ) -> None:
        """Stream what ``engine`` has; ``rng`` spreads the reconnects after a shutdown."""
        self.engine = engine
        self.settings = engine.settings.stream
        self.send_timeout_s = send_timeout_s
        self._drained_life = -1
        self._rng = rng or random.Random()  # nosec B311  # noqa: S311 - jitter is no secret
        self._open: set[EventStream] = set()
        self._open_of: Counter[str] = Counter()
        self._empty = asyncio.Event()
        self._opened = self._refused = self._stalled = 0
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_s = min(_LONGEST_SWEEP_S, self.settings.heartbeat_s / 10, send_timeout_s / 10)
        self.gathering = Gathering(streams=lambda: len(self._open), turns=lambda: engine.bus.turns)

    async def open(
        self,
        wanted: EventFilter,
        *,
        owner: str = ANONYMOUS,
        job_id: str | None = None,
        cursor: str | None = None,
        follow: bool = True,
        gzip: bool = False,
        caller: Caller | None = None,
    ) -> Response:
        """The response for one request: a stream, or 204 where ``cursor`` has seen the job's final event.

        ``job_id`` makes it that job's own stream. Raises JobNotFoundError, OverloadedError.
        """
        self._check_room(owner)
        backend = self.engine.backend
        position = await backend.position()
        record = None if job_id is None else await self._visible(job_id, wanted.owner)
        after_seq, reason = start_of(cursor, position, epoch=backend.epoch, of_job=record is not None, follow=follow)
        if record is not None and cursor and not reason and await has_ended(backend, record, after_seq):
            return Response(status_code=204, headers=_headers(typed=False))
        view = View(
            wanted=wanted if job_id is None else EventFilter(jobs=frozenset({job_id})),
            owner=owner,
            job_id=job_id,
            after_seq=after_seq,
            log_seq=position.last_seq,
            reset_reason=reason,
            follow=follow,
            gzip=gzip,
            caller=caller,
        )
        return EventStream(self, view)

    @property
    def is_draining(self) -> bool:
        """Whether streams were told to end, in this life of the engine."""
        return self._drained_life == self.engine.bus.life

    def drain(self) -> None:
        """Say goodbye on every stream, and cut those that do not take it in time: all end within a second.

        Call it on the event loop, as soon as the process is told to stop.
        """
        if not self.is_draining:
            self._drained_life = self.engine.bus.life
            for stream in self._open:
                stream.wake()
            asyncio.get_running_loop().call_later(BYE_TIMEOUT_S, self._cut, list(self._open))

    @property
    def are_open(self) -> bool:
        """Whether there is any stream."""
        return bool(self._open)

    def end_unless(self, stands: Callable[[Caller], bool]) -> int:
        """End the streams of callers whose credentials do not stand any more, within a second; returns how many."""
        ending = [one for one in self._open if one.view.caller is not None and not stands(one.view.caller)]
        for stream in ending:
            stream.revoke()
        if ending:
            asyncio.get_running_loop().call_later(REVOKED_S, self._cut_revoked, ending)
        return len(ending)

    def reopen(self) -> None:
        """Take streams again after :meth:`drain`: one application has ended, and the engine goes on."""
        self._drained_life = -1

    async def join(self) -> None:
        """Wait until no stream is open."""
        while self._open:
            self._empty.clear()
            await self._empty.wait()

    def statistics(self) -> StreamStatistics:
        """How many streams there are and were."""
        return StreamStatistics(open=len(self._open), opened=self._opened, refused=self._refused, stalled=self._stalled)

    def add(self, stream: "EventStream") -> None:
        """Count a stream that begins. Raises OverloadedError where the last place was taken since it was asked for."""
        self._check_room(stream.view.owner)
        self._open.add(stream)
        self._open_of[stream.view.owner] += 1
        self._opened += 1
        if self._sweeping is None:
            self._sweep()

    def remove(self, stream: "EventStream") -> None:
        """Count a stream that ended."""
        self._open.discard(stream)
        self._open_of[stream.view.owner] -= 1
        if not self._open_of[stream.view.owner]:
            del self._open_of[stream.view.owner]
        if not self._open:
            self._empty.set()
        if stream.connection.waiting:
            asyncio.get_running_loop().call_later(self.send_timeout_s, stream.connection.let_go)

    def note_stall(self) -> None:
        """Count a stream whose client took nothing."""
        self._stalled += 1
        _log.warning("an event stream was closed: its client took nothing for %g s", self.send_timeout_s)

    def age_s(self) -> float:
        """How old a new stream may become: up to a tenth less than the setting, so that not all end at once."""
        return self.settings.max_age_s * self._rng.uniform(0.9, 1)

    def bye_retry_ms(self) -> int:
        """When a client should come back after a goodbye: spread over one more retry interval."""
        return int(self.settings.retry_ms * self._rng.uniform(1, 2))

    def _check_room(self, owner: str) -> None:
        """One owner leaves a tenth of the places to others; where nobody logs in, all share them."""
        limit = self.settings.max_subscribers
        owner_limit = limit if owner == ANONYMOUS else limit - limit // 10
        if len(self._open) >= limit or self._open_of[owner] >= owner_limit:
            self._refused += 1
            raise OverloadedError(
                f"too many event streams are open (at most {limit} in this process, {owner_limit} for one owner); "
                "close one, or come back later",
                retry_after_s=RETRY_AFTER_S,
            )

    async def _visible(self, job_id: str, owner: str | None) -> JobRecord:
        record = await self.engine.get(job_id)
        if owner is not None and record.owner != owner:
            raise JobNotFoundError(job_id)
        return record

    def _sweep(self) -> None:
        """One timer for the deadlines of all streams: each looks at its own."""
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(self._sweep_s, self._sweep) if self._open else None
        for stream in list(self._open):
            stream.look_at_time(loop.time())

    def _cut(self, told: Sequence["EventStream"]) -> None:
        """End those that are still there, and the connections of those whose goodbye waits for a client that is not."""
        for stream in self._open if self.is_draining else ():
            stream.cut()
        for stream in told:
            stream.connection.let_go()

    def _cut_revoked(self, told: Sequence["EventStream"]) -> None:
        """The same for those whose credentials ended."""
        for stream in told:
            if stream in self._open:
                stream.cut()
            else:
                stream.connection.let_go()


class EventStream(Response):
    """One stream. Not FastAPI's EventSourceResponse: the same bytes go to every subscriber, many events in one send."""

    media_type = MEDIA_TYPE

    def __init__(self, streams: Streams, view: View, status_code: int = 200) -> None:
        """Show ``view``; nothing happens before the response is called."""
        self.status_code = status_code
        self.background = None
        self.raw_headers = list(_RAW_HEADERS[view.gzip])
        self.view = view
        self._streams = streams
        self._engine = streams.engine
        self._epoch = self._engine.backend.epoch
        self._cursor = self._told = view.after_seq
        self._is_over = self._is_stalled = self._is_revoked = False
        self._sent_at = self._ends_at = self._sending_since = math.inf
        self._pacer = ProgressPacer(streams.settings.progress_per_s)
        self._gzip = _compressor() if view.gzip else None
        self._subscription: Subscription | None = None
        self._limit: asyncio.Timeout | None = None
        self._send: Send
        self.connection: Connection
        """The one below, once the response was called."""

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

    def look_at_time(self, now: float) -> None:
        """End a send that its client does not take; wake the stream when a heartbeat or its own end is due."""
        still_s = self.connection.look(now)
        if (now - self._sending_since if still_s is None else still_s) >= self._streams.send_timeout_s:
            self._is_stalled = True
            self.cut()
        elif now >= min(self._sent_at + self._streams.settings.heartbeat_s, self._ends_at):
            self.wake()

    def wake(self) -> None:
        """Make the stream look at the state of things."""
        if self._subscription is not None:
            self._subscription.wake()

    def revoke(self) -> None:
        """End it with a goodbye, since its caller may not look any more."""
        self._is_revoked = True
        self.wake()

    def cut(self) -> None:
        """End it and its connection at once, whatever its client does."""
        self.connection.hang_up()
        self._end()

    async def _watch_client(self, receive: Receive) -> None:
        """A client that left is only told by ``receive``: a server's ``send`` may say nothing."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end()

    def _end(self) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

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
        """The first bytes, then what is stored."""
        retry_ms = self._streams.settings.retry_ms
        await self._put(b": asyncbg\nretry: %d\nid: %s\n\n" % (retry_ms, self._position()))
        if self.view.reset_reason is not None:
            await self._tell_reset(self.view.reset_reason)
        if self._is_over:
            return
        published_seq = self._engine.bus.last_seq if self.view.follow else 0
        await self._catch_up(max(self.view.log_seq, published_seq))

    async def _go_on(self, subscription: Subscription) -> None:
        """Live, until the job is over, the stream is old or the process stops. All that is pending goes in one send."""
        loop, heartbeat_s = asyncio.get_running_loop(), self._streams.settings.heartbeat_s
        while not self._is_over and not self._is_stopping() and (now := loop.time()) < self._ends_at:
            if subscription.lagging:
                subscription.reset()
                await self._come_back()
            elif chunk := self._collect(subscription.take_chunks(), now):
                await self._put(chunk)
                if pause_s := self._pause_s(loop.time()):
                    await asyncio.sleep(pause_s)
            elif now >= self._sent_at + heartbeat_s:
                await self._put(self._heartbeat())
            else:  # a heartbeat and the end are told by ``look_at_time``
                due_at = self._pacer.next_due()
                await subscription.wait(None if due_at is None else max(due_at - now, 0))

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
        return self._progress_frame(record)

    def _progress_frame(self, record: JobRecord) -> bytes:
        if record.progress is None:
            return b""
        event = Event(
            seq=0,
            type=EventType.PROGRESS,
            at_ms=record.finished_at_ms or self._engine.clock.now_ms(),
            job_id=record.id,
            task=record.task,
            batch=record.batch,
            owner=record.owner,
            attempt=record.attempt,
            data=dump(record.progress.as_dict()),
        )
        return encode(event, self._epoch)

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
        """A comment; with it the position, where the log went on without anything for this stream."""
        self._cursor = max(self._cursor, self._engine.bus.last_seq)
        if self._cursor == self._told:
            return b": heartbeat\n\n"
        self._told = self._cursor
        return b": heartbeat\nid: %s\n\n" % self._position()

    def _bye(self) -> bytes:
        retry_ms = self._streams.bye_retry_ms()
        is_old = asyncio.get_running_loop().time() >= self._ends_at
        reason = "age" if is_old and not self._streams.is_draining else "shutdown"
        data = {"reason": "revoked" if self._is_revoked else reason, "retry_ms": retry_ms}
        return self._notice("stream.bye", data, f"retry: {retry_ms}\n")

    async def _tell_reset(self, reason: str) -> None:
        """Say that events may be missing, and how the jobs in view stand now."""
        records, is_complete = await jobs_in_view(self._engine.backend, self.view.wanted)
        data = {"reason": reason, "jobs": [standing(record) for record in records], "complete": is_complete}
        await self._put(self._notice("stream.reset", data, f"id: {self._position().decode()}\n"))
        if self.view.job_id is not None and records:
            self._is_over = await has_ended(self._engine.backend, records[0], self._cursor)

    def _notice(self, kind: str, data: Mapping[str, Any], head: str) -> bytes:
        """A frame about the stream itself, in the form of the others; ``reason`` also where a glance finds it."""
        body = {
            "id": None,
            "type": kind,
            "time": rfc3339(self._engine.clock.now_ms()),
            "subject": self.view.job_id,
            "reason": data["reason"],
            "data": data,
        }
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        return f"{head}event: {kind}\ndata: {text}\n\n".encode()

    def _position(self) -> bytes:
        return event_id(self._epoch, self._cursor).encode()

    async def _put(self, chunk: bytes, *, more: bool = True) -> None:
        """Send ``chunk``, compressed and flushed. It is ended from outside when the client takes nothing."""
        if more and not chunk:
            return
        if self._gzip is not None:
            chunk = self._gzip.compress(chunk) + self._gzip.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)
        self._sending_since = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        self._sent_at, self._sending_since = self._sending_since, math.inf
        self.connection.gave(len(chunk))


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header (RFC 9110, section 12.5.3) takes gzip by name."""
    for coding in header.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() in {"gzip", "x-gzip"}:
            return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight)
    return False


def _headers(*, gzip: bool = False, typed: bool = True) -> dict[str, str]:
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", "Vary": "Accept-Encoding"}
    if typed:
        headers["Content-Type"] = f"{MEDIA_TYPE}; charset=utf-8"
    if gzip:
        headers["Content-Encoding"] = "gzip"
    return headers


def _compressor() -> "zlib._Compress":
    """Gzip (RFC 1952) with a window of 4 KiB: 32 KiB of memory a stream in the place of 256."""
    return zlib.compressobj(level=6, wbits=16 + 12, memLevel=5)


_RAW_HEADERS = {
    gzip: [(name.lower().encode(), value.encode()) for name, value in _headers(gzip=gzip).items()]
    for gzip in (False, True)
}
"""Those of every stream: encoded once, and the same bytes for all."""
