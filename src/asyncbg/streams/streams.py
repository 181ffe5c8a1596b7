"""The event streams of this process: opening them within the limits, their deadlines, and closing them."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from asyncbg.auth.caller import Caller
from asyncbg.core.event import EventFilter
from asyncbg.core.job import ANONYMOUS, JobRecord
from asyncbg.engine import Engine
from asyncbg.errors import JobNotFoundError, OverloadedError
from asyncbg.streams.send_batcher import SendBatcher
from asyncbg.streams.sse import EventStreamResponse
from asyncbg.streams.sse_format import stream_headers
from asyncbg.streams.stream_query import StreamQuery, has_ended, resolve_start

_log = logging.getLogger(__name__)

SEND_TIMEOUT_S: Final = 28.0
"""Checked every second, or later on a busy machine: a client that reads nothing is disconnected within 30 s."""
BYE_TIMEOUT_S: Final = 0.8
REVOKED_TIMEOUT_S: Final = 0.3
RETRY_AFTER_S: Final = 5.0
_MAX_SWEEP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatistics:
    """The number of open streams, and counts since the start."""

    open: int
    opened: int
    refused: int
    stalled: int


class Streams:
    """All event streams of this process: opens them within the limits, checks their deadlines and closes them."""

    def __init__(
        self, engine: Engine, *, rng: random.Random | None = None, send_timeout_s: float = SEND_TIMEOUT_S
    ) -> None:
        """Stream the events of ``engine``; ``rng`` spreads the reconnects after a shutdown."""
        self.engine = engine
        self.send_timeout_s = send_timeout_s
        self._settings = engine.settings.stream
        self._rng = rng or random.Random()  # nosec B311  # noqa: S311 - jitter is no secret
        self._drained_life = -1
        self._open: set[EventStreamResponse] = set()
        self._open_by_owner: Counter[str] = Counter()
        self._opened = self._refused = self._stalled = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_s = min(_MAX_SWEEP_S, self._settings.heartbeat_s / 10, send_timeout_s / 10)
        self._batcher = SendBatcher(streams=lambda: len(self._open), publications=lambda: engine.bus.publish_count)

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
        """Return the response for one request: a stream, or 204 where ``cursor`` is at the job's final event.

        ``job_id`` makes it the stream of that job. Raise JobNotFoundError, OverloadedError.
        """
        self._check_capacity(owner)
        backend = self.engine.backend
        position = await backend.position()
        record = None if job_id is None else await self._visible_job(job_id, wanted.owner)
        after_seq, reason = resolve_start(
            cursor, position, epoch=backend.epoch, of_job=record is not None, follow=follow
        )
        if record is not None and cursor and not reason and await has_ended(backend, record, after_seq):
            return Response(status_code=204, headers=stream_headers(has_body=False))
        query = StreamQuery(
            wanted=wanted if job_id is None else EventFilter(jobs=frozenset({job_id})),
            owner=owner,
            job_id=job_id,
            after_seq=after_seq,
            log_seq=position.last_seq,
            starts_now=follow and record is None and not cursor,
            reset_reason=reason,
            follow=follow,
            gzip=gzip,
            caller=caller,
        )
        return self.respond(query)

    def respond(self, query: StreamQuery) -> EventStreamResponse:
        """Return the stream of ``query``; it counts as open from when it is called until it ends."""
        return EventStreamResponse(
            query, self.engine, batcher=self._batcher, rng=self._rng, on_open=self._add, on_close=self._remove
        )

    def drain(self) -> None:
        """Close every stream, and abort those whose client does not read in time: all end within a second.

        Call it on the event loop, as soon as the process is asked to stop.
        """
        if not self._is_draining:
            self._drained_life = self.engine.bus.generation
            for stream in self._open:
                stream.close("shutdown")
            asyncio.get_running_loop().call_later(BYE_TIMEOUT_S, self._abort_drained, list(self._open))

    def reopen(self) -> None:
        """Accept streams again after :meth:`drain`: one application has ended, and the engine keeps running."""
        self._drained_life = -1

    def close_unauthorized(self, is_valid: Callable[[Caller], bool]) -> int:
        """Close the streams whose caller is not valid any more, within a second. Return how many."""
        ending = [one for one in self._open if one.query.caller is not None and not is_valid(one.query.caller)]
        for stream in ending:
            stream.close("revoked")
        if ending:
            asyncio.get_running_loop().call_later(REVOKED_TIMEOUT_S, self._abort_remaining, ending)
        return len(ending)

    def abandon(self) -> None:
        """Drop all streams without closing them: their event loop was closed."""
        self._open.clear()
        self._open_by_owner.clear()
        self._sweep_timer = None

    @property
    def are_open(self) -> bool:
        """Whether any stream is open."""
        return bool(self._open)

    def statistics(self) -> StreamStatistics:
        """Return the number of open streams, and counts since the start."""
        return StreamStatistics(open=len(self._open), opened=self._opened, refused=self._refused, stalled=self._stalled)

    async def _visible_job(self, job_id: str, owner: str | None) -> JobRecord:
        record = await self.engine.get(job_id)
        if owner is not None and record.owner != owner:
            raise JobNotFoundError(job_id)
        return record

    def _check_capacity(self, owner: str) -> None:
        """Raise OverloadedError where the limit of streams is reached.

        One owner leaves a tenth of the streams to others; where nobody authenticates, all callers share the limit.
        """
        limit = self._settings.max_subscribers
        owner_limit = limit if owner == ANONYMOUS else limit - limit // 10
        if len(self._open) >= limit or self._open_by_owner[owner] >= owner_limit:
            self._refused += 1
            raise OverloadedError(
                f"too many event streams are open (at most {limit} in this process, {owner_limit} for one owner); "
                "close one, or try again later",
                retry_after_s=RETRY_AFTER_S,
            )

    def _add(self, stream: EventStreamResponse) -> None:
        """Count a stream that begins. Raise OverloadedError where the limit was reached since it was opened."""
        self._check_capacity(stream.query.owner)
        self._open.add(stream)
        self._open_by_owner[stream.query.owner] += 1
        self._opened += 1
        if self._is_draining:
            stream.close("shutdown")
        if self._sweep_timer is None:
            self._sweep()

    def _remove(self, stream: EventStreamResponse) -> None:
        """Count a stream that ended, and abort its connection later if the client reads none of the rest."""
        self._open.discard(stream)
        self._open_by_owner[stream.query.owner] -= 1
        if not self._open_by_owner[stream.query.owner]:
            del self._open_by_owner[stream.query.owner]
        if stream.connection.buffered:
            asyncio.get_running_loop().call_later(self.send_timeout_s, stream.connection.abort_if_closing)
        if stream.is_stalled:
            self._stalled += 1
            _log.warning("an event stream was closed: its client read nothing for %g s", self.send_timeout_s)

    @property
    def _is_draining(self) -> bool:
        """Whether :meth:`drain` was called since the engine started."""
        return self._drained_life == self.engine.bus.generation

    def _sweep(self) -> None:
        """Let every open stream check its deadlines: one timer for all."""
        loop = asyncio.get_running_loop()
        self._sweep_timer = loop.call_later(self._sweep_s, self._sweep) if self._open else None
        for stream in list(self._open):
            try:
                stream.check_deadlines(loop.time(), send_timeout_s=self.send_timeout_s)
            except BaseException as error:  # noqa: BLE001 - the deadlines of the other streams are checked all the same
                self.engine._parts.errors.add("streams", error, "an event stream missed its deadline", is_ours=True)

    def _abort_drained(self, closed: Sequence[EventStreamResponse]) -> None:
        """Abort the streams that are still open, and closed connections whose client does not read the last frame."""
        for stream in self._open if self._is_draining else ():
            stream.abort()
        for stream in closed:
            stream.connection.abort_if_closing()

    def _abort_remaining(self, closed: Sequence[EventStreamResponse]) -> None:
        """The same for streams that were closed one by one."""
        for stream in closed:
            if stream in self._open:
                stream.abort()
            else:
                stream.connection.abort_if_closing()
