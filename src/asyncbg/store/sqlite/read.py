"""The reads of the SQLite store: job records, job lists, pages of the event log."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from asyncbg.core.event import Event, EventFilter, EventType
from asyncbg.core.job import FINAL_STATES, JobFailure, JobRecord, JobState, Lease, ProgressValue
from asyncbg.core.stored_text import load_json
from asyncbg.errors import JobNotFoundError, JobStateError
from asyncbg.store.base import JobQuery, Tail, TaskCount
from asyncbg.store.sqlite.statement import SQL, read_json

_SCAN = 50_000
"""Events scanned by one read: some 4 ms, so that a rare filter gets through a long log in few reads."""
_NO_REPORT = 2**62
# Since SQLite 3.43 octet_length reads the size of a column from the header of the row; length reads the text.
_SIZE = "octet_length" if sqlite3.sqlite_version_info >= (3, 43) else "length"
_WHOLE = "args, NULL, result, NULL"
_BOUNDED = ", ".join(
    f"CASE WHEN {_SIZE}({column}) <= {{most}} THEN {column} END, {_SIZE}({column})" for column in ("args", "result")
)
_IN_BATCH = "n IN (SELECT n FROM job WHERE id = ? UNION ALL SELECT n FROM job WHERE batch = ? AND batch <> id)"
_OF_BATCHES = (
    "e.job IN (SELECT n FROM job, json_each(?) v WHERE job.id = v.value "
    "UNION ALL SELECT n FROM job, json_each(?) v WHERE job.batch = v.value AND job.batch <> job.id)"
)
# One job's events come from the index in their order; of several they are sorted.
_OF_JOB = "e.job = (SELECT n FROM job WHERE id = json_extract(?, '$[0]'))"
_OF_JOBS = "e.job IN (SELECT n FROM job WHERE id IN (SELECT value FROM json_each(?)))"


_ENDED_BADLY = frozenset({JobState.FAILED, JobState.CANCELLED})


class RecordRow(NamedTuple):
    """The columns of a job record; arguments and result each with their size where they may be left out."""

    n: int
    id: str
    task: str
    queue: str
    state: str
    owner: str
    priority: int
    batch: str
    tags: str
    durable: int
    attempt: int
    max_attempts: int
    crashes: int
    created_at: int
    run_at: int
    started_at: int | None
    finished_at: int | None
    personal: str
    progress: str | None
    error_type: str | None
    error_message: str | None
    cancel_reason: str | None
    args: str | None
    args_size: int | None
    result: str | None
    result_size: int | None


_RECORD_COLUMNS = ", ".join(RecordRow._fields[:-4])


class ProgressRow(NamedTuple):
    """The progress of a job that another process has reported: an item of ``read_tail``."""

    job_id: str
    task: str
    batch: str
    owner: str
    attempt: int
    progress: str
    is_running: int


def find_record(connection: sqlite3.Connection, where: str, *values: Any) -> JobRecord | None:
    """Return the job that a condition selects, or None."""
    found = find_records(connection, where, values, 1)
    return found[0] if found else None


def find_records(
    connection: sqlite3.Connection,
    where: str,
    values: Sequence[Any],
    limit: int,
    *,
    most_value_bytes: int | None = None,
) -> list[JobRecord]:
    """Return the newest jobs that a condition selects; values over ``most_value_bytes`` are not read."""
    large = _WHOLE if most_value_bytes is None else _BOUNDED.format(most=int(most_value_bytes))
    statement = f"SELECT {_RECORD_COLUMNS}, {large} FROM job WHERE {where} ORDER BY n DESC LIMIT ?"  # nosec B608  # noqa: S608 - no input
    return [_record(RecordRow._make(row)) for row in connection.execute(statement, (*values, limit)).fetchall()]


def _record(row: RecordRow) -> JobRecord:
    sizes = (("args", row.args, row.args_size), ("result", row.result, row.result_size))
    return JobRecord(
        n=row.n, id=row.id, task=row.task, queue=row.queue, state=JobState(row.state), owner=row.owner,
        priority=_number(row.priority), batch=row.batch, tags=_texts(load_json(row.tags, ())),
        durable=bool(row.durable),
        attempt=_number(row.attempt), max_attempts=_number(row.max_attempts), crashes=_number(row.crashes),
        created_at_ms=_number(row.created_at), run_at_ms=_number(row.run_at), started_at_ms=_number(row.started_at),
        finished_at_ms=_number(row.finished_at),
        args="{}" if row.args is None else row.args, personal=_marks(load_json(row.personal, {})),
        progress=ProgressValue.read(row.progress) if row.progress else None, result=row.result,
        error=JobFailure(type=row.error_type, message=row.error_message or "") if row.error_type else None,
        cancel_reason=row.cancel_reason,
        omitted={name: size for name, value, size in sizes if value is None and size is not None},
    )  # fmt: skip


def _number(stored: Any) -> Any:
    """A column of whole numbers, or null; what another program wrote into it instead counts as 0."""
    return stored if stored is None or isinstance(stored, int) else 0


def _marks(stored: object) -> dict[str, Any]:
    return stored if isinstance(stored, dict) else {}


def _texts(stored: object) -> tuple[str, ...]:
    return tuple(map(str, stored)) if isinstance(stored, list) else ()


def conditions(query: JobQuery) -> tuple[str, list[Any]]:
    """Return a query as an SQL condition and its values."""
    parts: list[str] = ["1"]
    values: list[Any] = []
    if query.states:
        # Spelt out: a partial index is used only where its own condition is repeated with literals.
        if query.batch is not None:
            pass  # its own index is the narrower one
        elif len(query.states) == 1 and query.states <= _ENDED_BADLY:
            parts.append("state IN ('failed', 'cancelled')")
        elif not query.states & FINAL_STATES:
            parts.append("finished_at IS NULL")
        parts.append("(" + " OR ".join(f"state = '{state.value}'" for state in sorted(query.states)) + ")")
    for column, value in (("task", query.task), ("queue", query.queue), ("owner", query.owner)):
        if value is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    if query.tag is not None:
        parts.append("EXISTS (SELECT 1 FROM json_each(job.tags) WHERE value = ?)")
        values.append(query.tag)
    if query.batch is not None:
        parts.append(_IN_BATCH)
        values += [query.batch, query.batch]
    if query.before_n is not None:
        parts.append("n < ?")
        values.append(query.before_n)
    return " AND ".join(parts), values


def count_waiting(connection: sqlite3.Connection) -> list[TaskCount]:
    """Count the jobs of each task that have not started, by state."""
    return [
        TaskCount(task=task, is_durable=bool(durable), state=JobState(state), many=many)
        for task, durable, state, many in read_json(connection, "count_waiting", {})
    ]


def count_open(connection: sqlite3.Connection) -> dict[JobState, int]:
    """Count the jobs in each state that is not final."""
    counts = dict.fromkeys((JobState.QUEUED, JobState.SCHEDULED, JobState.WAITING), 0)
    for counted in count_waiting(connection):
        counts[counted.state] += counted.many
    return counts | {JobState.RUNNING: connection.execute(SQL["count_running"]).fetchone()[0]}


def find_events(
    connection: sqlite3.Connection, after_seq: int, wanted: EventFilter, limit: int, up_to_seq: int | None
) -> tuple[list[Event], int]:
    """Return the matching events after ``after_seq`` and the seq the scan reached; bounded unless jobs are named."""
    last_seq = connection.execute(SQL["read_log"]).fetchone()[1]
    end = last_seq if up_to_seq is None else min(up_to_seq, last_seq)
    parts = ["e.seq > ?", "e.seq <= ?"]
    values: list[Any] = []
    narrow = False
    for ids, condition in (
        (wanted.jobs, _OF_JOB if len(wanted.jobs) == 1 else _OF_JOBS),
        (wanted.batches, _OF_BATCHES),
    ):
        if ids:
            narrow = True
            parts.append(condition)
            values += [json.dumps(sorted(ids))] * condition.count("?")
    if wanted.tasks:
        condition, value = _one_of("j.task", wanted.tasks)
        parts.append(condition)
        values.append(value)
    if wanted.types:
        condition, names = _of_types(wanted.types)
        parts.append(condition)
        values += names
    if wanted.owner is not None:
        parts.append("j.owner = ?")
        values.append(wanted.owner)
    reach = end if narrow else min(end, after_seq + _SCAN)
    statement = (
        "SELECT json_group_array(json_array(seq, type, at, id, task, batch, owner, attempt, data)) FROM ("  # nosec B608  # noqa: S608
        "SELECT e.seq, e.type, e.at, j.id, j.task, j.batch, j.owner, e.attempt, e.data "
        f"FROM event e JOIN job j ON j.n = e.job WHERE {' AND '.join(parts)} ORDER BY e.seq LIMIT ?)"
    )
    found = json.loads(connection.execute(statement, (after_seq, reach, *values, limit)).fetchone()[0])
    events = [Event(*row) for row in found]
    return events, events[-1].seq if len(events) == limit else max(reach, after_seq)


def lease_holds(connection: sqlite3.Connection, lease: Lease) -> bool:
    """Whether the lease still holds."""
    return connection.execute(SQL["lease_holds"], (lease.n, lease.token)).fetchone() is not None


def require_ended(connection: sqlite3.Connection, job_id: str) -> None:
    """Raise JobStateError where the job is not final, JobNotFoundError where there is no such job."""
    row = connection.execute(SQL["state_of"], (job_id,)).fetchone()
    if row is None:
        raise JobNotFoundError(job_id)
    if JobState(row[0]) not in FINAL_STATES:
        raise JobStateError(job_id, row[0], "clean up after")


def read_tail(connection: sqlite3.Connection, after_report: int | None, place: str, now_ms: int) -> Tail:
    """Return the end of the log, and the latest progress that other processes have reported since."""
    after = _NO_REPORT if after_report is None else after_report
    seq, report, found = read_json(connection, "read_tail", {"after": after, "place": place})
    events: dict[bool, list[Event]] = {True: [], False: []}
    for row in map(ProgressRow._make, found):
        events[bool(row.is_running)].append(Event(0, EventType.PROGRESS.value, now_ms, *row[:-1]))
    return Tail(last_seq=seq, last_report=report, running=events[True], ended=events[False])


def _of_types(types: Collection[str]) -> tuple[str, list[str]]:
    """Return the condition on an event's type; names that end with a star are prefixes."""
    prefixes = sorted(name[:-1] for name in types if name.endswith("*"))
    parts = ["substr(e.type, 1, length(?)) = ?"] * len(prefixes)
    values = [prefix for prefix in prefixes for _ in range(2)]
    if exact := [name for name in types if not name.endswith("*")]:
        condition, value = _one_of("e.type", exact)
        parts.insert(0, condition)
        values.insert(0, value)
    return f"({' OR '.join(parts)})", values


def _one_of(column: str, names: Collection[str]) -> tuple[str, str]:
    """Return a condition for every event of a long scan: comparing with one name costs half as much as with a list."""
    if len(names) == 1:
        return f"{column} = ?", next(iter(names))
    return f"{column} IN (SELECT value FROM json_each(?))", json.dumps(sorted(names))  # noqa: S608 - a column of ours  # nosec B608
