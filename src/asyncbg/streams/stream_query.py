"""The query of one event stream: its filter, its position in the event log, and the jobs that the filter matches."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncbg.auth.caller import Caller
from asyncbg.core.event import EventFilter
from asyncbg.core.job import JobRecord
from asyncbg.store.base import Backend, JobQuery, LogPosition

_CURSOR = re.compile(r"([A-Za-z0-9._]{1,64})-([0-9]{1,18})")
_MAX_JOBS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamQuery:
    """The events that match ``wanted`` after ``after_seq``; the log ended at ``log_seq`` when the stream was opened.

    ``starts_now``: the stream was opened without a cursor and follows more than one job, so it has to send the position
    that it started from. ``reset_reason`` says why the cursor of the request could not be used. ``caller`` is set where
    the request was authenticated, so that the stream ends when its credentials do.
    """

    wanted: EventFilter
    owner: str
    job_id: str | None
    after_seq: int
    log_seq: int
    starts_now: bool = False
    reset_reason: str | None = None
    follow: bool = True
    gzip: bool = False
    caller: Caller | None = None


def resolve_start(
    cursor: str | None, position: LogPosition, *, epoch: str, of_job: bool, follow: bool
) -> tuple[int, str | None]:
    """Return the seq after which a stream starts, and the reason where its cursor cannot be used.

    Without a cursor, a job's stream starts with the job's first event. Any other stream starts now or, where it does
    not follow, with the first event of the log. The events of a job are purged together with the job, so its own stream
    can resume from any position of the log.
    """
    first = 0 if of_job else position.first_seq - 1
    if not cursor:
        return (first if of_job or not follow else position.last_seq), None
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        return position.last_seq, "malformed"
    if found[1] != epoch:
        return position.last_seq, "foreign"
    after_seq = int(found[2])
    if not first <= after_seq <= position.last_seq:
        return position.last_seq, "unreachable"
    return after_seq, None


async def has_ended(backend: Backend, record: JobRecord, after_seq: int) -> bool:
    """Whether the job is final and has no event after ``after_seq``."""
    if not record.state.is_final:
        return False
    wanted = EventFilter(jobs=frozenset({record.id}))
    events, _ = await backend.events(after_seq=after_seq, wanted=wanted, limit=1)
    return not events


async def find_jobs(backend: Backend, wanted: EventFilter) -> tuple[Sequence[JobRecord], bool]:
    """Return the newest jobs whose events match ``wanted``, and whether these are all of them."""
    if wanted.jobs:
        newest = sorted(wanted.jobs, reverse=True)[:_MAX_JOBS]
        found = [await backend.get(job_id) for job_id in newest]
        records = [record for record in found if record is not None and _matches(wanted, record)]
        return records, len(wanted.jobs) <= _MAX_JOBS
    records = []
    tasks: list[str | None] = [*sorted(wanted.tasks)] or [None]
    batches: list[str | None] = [*sorted(wanted.batches)] or [None]
    for task in tasks:
        for batch in batches:
            query = JobQuery(task=task, batch=batch, owner=wanted.owner, limit=_MAX_JOBS + 1, most_value_bytes=0)
            records += await backend.list(query)
            if len(records) > _MAX_JOBS:
                return records[:_MAX_JOBS], False
    return records, True


def job_summary(record: JobRecord) -> dict[str, Any]:
    """Return the state of a job, without arguments and result, for a client that may have missed events."""
    return {
        "id": record.id,
        "task": record.task,
        "state": record.state,
        "batch": record.batch,
        "owner": record.owner,
        "attempt": record.attempt,
        "max_attempts": record.max_attempts,
        "progress": record.progress.as_dict() if record.progress else None,
        "error": record.error.as_dict() if record.error else None,
    }


def _matches(wanted: EventFilter, record: JobRecord) -> bool:
    return (
        (wanted.owner is None or record.owner == wanted.owner)
        and (not wanted.tasks or record.task in wanted.tasks)
        and (not wanted.batches or record.batch in wanted.batches)
    )
