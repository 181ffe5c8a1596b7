"""What one event stream shows: its filter, where in the log it starts, and how the jobs in its view stand."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncbg.auth.caller import Caller
from asyncbg.core.event import EventFilter
from asyncbg.core.job import JobRecord
from asyncbg.store.base import Backend, JobQuery, LogPosition

_CURSOR = re.compile(r"([A-Za-z0-9._]{1,64})-([0-9]{1,18})")
_JOBS_IN_VIEW = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The events ``wanted`` after ``after_seq``, of a log that reached ``log_seq`` when the stream was opened.

    ``starts_now``: it was opened without a cursor and follows more than one job, so only it knows where it began.
    ``reset_reason`` says why the cursor that came with the request could not be used; ``caller`` who looks, where that
    was asked, so that the stream ends with the credentials it was opened with.
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


def start_of(
    cursor: str | None, position: LogPosition, *, epoch: str, of_job: bool, follow: bool
) -> tuple[int, str | None]:
    """After which seq a stream starts, and why its cursor cannot be used, if so.

    Without a cursor, a job's stream starts with its first event, another one now, or with the first event there is
    where it does not follow. A job's events are purged with the job and not before: its own stream can go on from any
    position of the log.
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
    """Whether the job is final and none of its events lies after ``after_seq``."""
    if not record.state.is_final:
        return False
    wanted = EventFilter(jobs=frozenset({record.id}))
    events, _ = await backend.events(after_seq=after_seq, wanted=wanted, limit=1)
    return not events


async def jobs_in_view(backend: Backend, wanted: EventFilter) -> tuple[Sequence[JobRecord], bool]:
    """The newest jobs that ``wanted`` takes events of, and whether these are all of them."""
    if wanted.jobs:
        newest = sorted(wanted.jobs, reverse=True)[:_JOBS_IN_VIEW]
        found = [await backend.get(job_id) for job_id in newest]
        records = [record for record in found if record is not None and _takes(wanted, record)]
        return records, len(wanted.jobs) <= _JOBS_IN_VIEW
    records = []
    tasks: list[str | None] = [*sorted(wanted.tasks)] or [None]
    batches: list[str | None] = [*sorted(wanted.batches)] or [None]
    for task in tasks:
        for batch in batches:
            query = JobQuery(task=task, batch=batch, owner=wanted.owner, limit=_JOBS_IN_VIEW + 1, most_value_bytes=0)
            records += await backend.list(query)
            if len(records) > _JOBS_IN_VIEW:
                return records[:_JOBS_IN_VIEW], False
    return records, True


def standing(record: JobRecord) -> dict[str, Any]:
    """How a job stands, for a consumer that may have missed events; nothing of its arguments or its result."""
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


def _takes(wanted: EventFilter, record: JobRecord) -> bool:
    return (
        (wanted.owner is None or record.owner == wanted.owner)
        and (not wanted.tasks or record.task in wanted.tasks)
        and (not wanted.batches or record.batch in wanted.batches)
    )
