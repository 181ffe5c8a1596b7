"""Opening event streams: where in the log one starts, and who may see it."""

from starlette.responses import Response

from asyncbg.auth.caller import Caller
from asyncbg.core.event import EventFilter
from asyncbg.core.job import ANONYMOUS, JobRecord
from asyncbg.errors import JobNotFoundError
from asyncbg.streams.open_streams import OpenStreams
from asyncbg.streams.sse import EventStream
from asyncbg.streams.stream_headers import stream_headers
from asyncbg.streams.view import View, has_ended, start_of


class Streams(OpenStreams):
    """All event streams of this process: opens them within the caps, and ends them at shutdown."""

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
        self.check_room(owner)
        backend = self.engine.backend
        position = await backend.position()
        record = None if job_id is None else await self._visible(job_id, wanted.owner)
        after_seq, reason = start_of(cursor, position, epoch=backend.epoch, of_job=record is not None, follow=follow)
        if record is not None and cursor and not reason and await has_ended(backend, record, after_seq):
            return Response(status_code=204, headers=stream_headers(typed=False))
        view = View(
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
        return EventStream(self, view)

    async def _visible(self, job_id: str, owner: str | None) -> JobRecord:
        record = await self.engine.get(job_id)
        if owner is not None and record.owner != owner:
            raise JobNotFoundError(job_id)
        return record
