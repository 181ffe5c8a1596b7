"""The commands ``jobs``, ``enqueue`` and ``events``, which open the store directly, whether the service runs or not."""

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import TypeAdapter, ValidationError

from asyncbg.auth.audit import COMMAND_LINE, audited, open_audit
from asyncbg.cli.terminal import (
    AsJson,
    ExitCode,
    Profile,
    UsageError,
    overrides,
    print_json,
    print_line,
    print_note,
    print_table,
    printable,
)
from asyncbg.core.clock import SystemClock, rfc3339
from asyncbg.core.event import Event, EventFilter, EventType
from asyncbg.core.job import ANONYMOUS, Attempt, JobRecord, JobState, redact_for
from asyncbg.engine import CallOptions
from asyncbg.engine.registry import count_known_jobs
from asyncbg.errors import JobCancelledError, JobFailedError, JobNotFoundError, JobTimeoutError, OverloadedError
from asyncbg.ops.open_store import database_file, has_database, open_store, processes_at
from asyncbg.privacy import redact_json
from asyncbg.settings import load_settings
from asyncbg.store.base import Backend, JobQuery
from asyncbg.store.search import SearchError, cancel_matching, unfinished
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.web.schemas import MAX_LISTED_BYTES, AttemptOut, Cursor, JobOut, cursor_after

_POLL_S = 0.1
_PAGE = 500
_DEFAULT_LAST = 10
_MAX_LIMIT = 1_000
_CURSOR: TypeAdapter[int | None] = TypeAdapter(Cursor)

JobId = Annotated[str, Parameter(help="The job's id.")]
Timeout = Annotated[float | None, Parameter(name="--timeout", help="Maximum seconds to wait; then exit code 124.")]
Limit = Annotated[int, Parameter(help="Maximum number of results (1-1000).")]

jobs_app = App(name="jobs", help="List, show, watch, retry and cancel jobs.")
events_app = App(name="events", help="Show stored and live events.")


# Reading


@jobs_app.command(name="list")
def list_jobs(
    *,
    state: Annotated[
        tuple[str, ...], Parameter(help="Only jobs in this state; separate several with commas.", negative="")
    ] = (),
    task: Annotated[str | None, Parameter(help="Only jobs of this task.")] = None,
    tag: Annotated[str | None, Parameter(help="Only jobs with this tag.")] = None,
    batch: Annotated[str | None, Parameter(help="Only jobs of this batch.")] = None,
    limit: Limit = 50,
    cursor: Annotated[str | None, Parameter(help='The "next" of the previous page.')] = None,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """List jobs, newest first."""
    if not 1 <= limit <= _MAX_LIMIT:
        raise UsageError(f"--limit must be 1 to {_MAX_LIMIT}")
    query = JobQuery(
        states=_states(state),
        task=task,
        tag=tag,
        batch=batch,
        before_n=_position(cursor),
        limit=limit + 1,
        most_value_bytes=MAX_LISTED_BYTES,
    )
    found = asyncio.run(_list(query, profile))
    page, more = found[:limit], len(found) > limit
    if as_json:
        print_json({"items": [_job_json(record) for record in page], "next": cursor_after(page[-1]) if more else None})
        return
    print_table(("id", "task", "state", "attempt", "created", "progress", "arguments"), map(_row, page))
    if more:
        print_note(f"next page: --cursor {cursor_after(page[-1])}")


async def _list(query: JobQuery, profile: str | None) -> Sequence[JobRecord]:
    async with _open_store(profile) as store:
        return await store.list(query)


@jobs_app.command
def show(job_id: JobId, /, *, as_json: AsJson = False, profile: Profile = None) -> None:
    """Show one job, with personal arguments as pseudonyms."""
    record, attempts = asyncio.run(_read_job(job_id, profile))
    shown = [AttemptOut.from_attempt(attempt).model_dump(mode="json") for attempt in attempts]
    if as_json:
        print_json(_job_json(record) | {"attempts": shown})
        return
    _print_job(record, as_json=False)
    _print_attempts(shown)


async def _read_job(job_id: str, profile: str | None) -> tuple[JobRecord, Sequence[Attempt]]:
    async with _open_store(profile) as store:
        return await _get(store, job_id), await store.attempts(job_id)


@jobs_app.command
def watch(job_id: JobId, /, *, timeout: Timeout = None, as_json: AsJson = False, profile: Profile = None) -> int:
    """Show a job's events from the first until it is final; with --json one event per line."""
    return asyncio.run(_watch(job_id, timeout, profile, as_json=as_json))


async def _watch(job_id: str, timeout_s: float | None, profile: str | None, *, as_json: bool) -> int:
    async with _open_store(profile) as store:
        try:
            async with asyncio.timeout(timeout_s), aclosing(_history(store, job_id)) as history:
                async for event in history:
                    _print_event(event, store.epoch, as_json=as_json)
        except TimeoutError:
            raise JobTimeoutError(job_id, timeout_s or 0) from None
        return _exit_code(await _get(store, job_id))


async def _history(store: Backend, job_id: str) -> AsyncGenerator[Event, None]:
    """Yield a job's stored events until the final one, and its progress whenever it changes."""
    wanted = EventFilter(jobs=frozenset({job_id}))
    reached, seen = 0, None
    while True:
        record = await _get(store, job_id)  # read before the events, so that the final event is included
        events, reached = await store.events(after_seq=reached, wanted=wanted, limit=_PAGE)
        last = [events[-1]] if events and events[-1].is_final else []
        for event in events[: len(events) - len(last)]:
            yield event
        if record.progress is not None and record.progress != seen:
            seen = record.progress
            yield _progress_event(record)
        for event in last:
            yield event
        if record.state.is_final and len(events) < _PAGE:
            return
        await asyncio.sleep(0 if len(events) == _PAGE else _POLL_S)


def _progress_event(record: JobRecord) -> Event:
    data = json.dumps(record.progress.as_dict()) if record.progress else None
    now_ms = SystemClock().now_ms()
    return Event(
        0, EventType.PROGRESS.value, now_ms, record.id, record.task, record.batch, record.owner, record.attempt, data
    )


@events_app.command
def tail(
    *,
    follow: Annotated[bool, Parameter(help="Continue with new events.")] = True,
    last: Annotated[
        int | None, Parameter(help="Number of stored events to begin with; default 10, all with --no-follow.")
    ] = None,
    job: Annotated[str | None, Parameter(help="Only events of this job.")] = None,
    task: Annotated[str | None, Parameter(help="Only events of jobs of this task.")] = None,
    event_type: Annotated[
        str | None, Parameter(name="--type", help="Only these types, such as job.failed,csv.*")
    ] = None,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Show stored events, oldest first, and follow the log; with --json one event per line."""
    if last is not None and last < 0:
        raise UsageError("--last must be 0 or more")
    wanted = EventFilter(
        jobs=frozenset([job] if job else ()), tasks=frozenset([task] if task else ()),
        types=frozenset(word for word in (event_type or "").split(",") if word),
    )  # fmt: skip
    most = _DEFAULT_LAST if last is None and follow else last
    asyncio.run(_tail(wanted, most, profile, follow=follow, as_json=as_json))


async def _tail(wanted: EventFilter, most: int | None, profile: str | None, *, follow: bool, as_json: bool) -> None:
    async with _open_store(profile, create=follow) as store:
        end = (await store.position()).last_seq
        kept: deque[Event] = deque(maxlen=most)
        async for event in _stored(store, wanted, end):
            if most is None:
                _print_event(event, store.epoch, as_json=as_json)
            else:
                kept.append(event)
        for event in kept:
            _print_event(event, store.epoch, as_json=as_json)
        while follow:
            events, end = await store.events(after_seq=end, wanted=wanted, limit=_PAGE)
            for event in events:
                _print_event(event, store.epoch, as_json=as_json)
            if len(events) < _PAGE:
                await asyncio.sleep(_POLL_S)


async def _stored(store: Backend, wanted: EventFilter, end: int) -> AsyncIterator[Event]:
    """Yield the stored events up to ``end``."""
    reached = 0
    while reached < end:
        events, reached = await store.events(after_seq=reached, wanted=wanted, limit=_PAGE, up_to_seq=end)
        for event in events:
            yield event


# Changing


@jobs_app.command
def retry(job_id: JobId, /, *, as_json: AsJson = False, profile: Profile = None) -> None:
    """Run a final job again; its history is kept."""

    async def again() -> JobRecord:
        async with _open_store(profile) as store:
            await _get(store, job_id)
            async with audited(await open_audit(store.database), "job.retry", job_id, who=COMMAND_LINE):
                await store.retry(job_id)
            return await _get(store, job_id)

    _print_state(asyncio.run(again()), as_json=as_json)


@jobs_app.command
def cancel(
    job_id: Annotated[str | None, Parameter(help="The job's id; omit it with --match.")] = None,
    /,
    *,
    match: Annotated[
        str | None, Parameter(help="Cancel all unfinished jobs that match a search: 'task:NAME state:queued'.")
    ] = None,
    dry_run: Annotated[bool, Parameter(help="With --match: only count the jobs.", negative="")] = False,
    yes: Annotated[bool, Parameter(help="With --match: do not ask for confirmation.", negative="")] = False,
    reason: Annotated[str, Parameter(help="The reason, stored with the job.")] = "",
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Cancel a job; a running one is cancelled by its process. With --match, cancel all matching jobs."""
    if (job_id is None) is (match is None):
        raise UsageError("give a job's id, or --match with a search such as 'task:NAME state:queued'")
    if match is not None:
        _cancel_all(match, reason, profile, dry_run=dry_run, yes=yes, as_json=as_json)
    elif job_id is not None:
        _cancel_one(job_id, reason, profile, as_json=as_json)


def _cancel_one(job_id: str, reason: str, profile: str | None, *, as_json: bool) -> None:

    async def stop() -> JobRecord:
        async with _open_store(profile) as store:
            note = redact_for(await _get(store, job_id), reason)
            async with audited(await open_audit(store.database), "job.cancel", job_id, who=COMMAND_LINE):
                await store.cancel(job_id, note)
            return await _get(store, job_id)

    record = asyncio.run(stop())
    _print_state(record, as_json=as_json, remarks=" (its process will cancel it)")


def _cancel_all(match: str, reason: str, profile: str | None, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    try:
        query = unfinished(match)
    except SearchError as error:
        raise UsageError(f"--match {error}") from None
    if not (dry_run or yes):
        many = asyncio.run(_cancel_matching(query, match, reason, profile, dry_run=True))
        _confirm(f"cancel {many} jobs")
    matched = asyncio.run(_cancel_matching(query, match, reason, profile, dry_run=dry_run))
    if as_json:
        print_json({"matched": matched, "dry_run": dry_run})
    else:
        print_line(f"{matched} jobs {'would be' if dry_run else 'were'} cancelled")


def _confirm(what: str) -> None:
    """Ask for confirmation. Raises UsageError without a terminal or if the answer is no."""
    if not sys.stdin.isatty():
        raise UsageError(f"this would {what}; add --yes to confirm, or --dry-run to only count them")
    if input(f"{what}? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was done")


async def _cancel_matching(
    query: JobQuery, match: str, reason: str, profile: str | None, *, dry_run: bool
) -> int:  # fmt: skip
    async with _open_store(profile) as store:

        async def cancel(job_id: str) -> None:
            if not dry_run:
                await store.cancel(job_id, redact_for(await _get(store, job_id), reason or "cancelled in bulk"))

        matched, _ = await cancel_matching(store.list, cancel, query, most=sys.maxsize)
        if not dry_run:
            audit = await open_audit(store.database)
            await audit.record("jobs.cancel", match, who=COMMAND_LINE, reason=f"{matched} jobs")
        return matched


def enqueue(
    task: Annotated[str, Parameter(help="The task's name.")],
    arguments: Annotated[
        str,
        Parameter(
            name="JSON",
            allow_leading_hyphen=True,
            help="The arguments as a JSON object; - reads it from standard input.",
        ),
    ] = "{}",
    /,
    *,
    wait: Annotated[bool, Parameter(help="Wait for the final state; exit code 3 if it failed.", negative="")] = False,
    timeout: Timeout = None,
    delay: Annotated[float | None, Parameter(help="Delay in seconds.")] = None,
    priority: Annotated[int | None, Parameter(help="Priority; higher runs first.")] = None,
    tag: Annotated[tuple[str, ...], Parameter(help="Tag of the job; may be repeated.", negative="")] = (),
    owner: Annotated[str, Parameter(help="Owner of the job: the name of an API key.")] = ANONYMOUS,
    as_json: AsJson = False,
    profile: Profile = None,
) -> int:
    """Enqueue a job for one of the service's tasks; it is stored on return and runs when the service runs."""
    options = CallOptions(delay=delay, priority=priority, tags=tag, owner=owner)
    return asyncio.run(
        _enqueue(task, _parse_object(arguments), options, profile, wait=wait, timeout_s=timeout, as_json=as_json)
    )


async def _enqueue(
    task: str,
    arguments: dict[str, Any],
    options: CallOptions,
    profile: str | None,
    *,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    from asyncbg.service.server import service_engine  # slow to load, and no other command needs it

    settings = load_settings(**overrides(profile))
    engine = service_engine(settings)
    definition = engine._parts.registry.get(task)
    bound = definition.arguments.validate(task, arguments)
    async with open_store(settings, create=True) as store:
        waiting = count_known_jobs(await store.waiting(), engine._parts.registry)
        if waiting >= settings.runner.max_queued:
            raise OverloadedError(f"{waiting} jobs are waiting, which is the limit; try again later", retry_after_s=1.0)
        enqueued = await store.enqueue([engine._parts.enqueuer.prepare(definition, bound, options).new])
        record = await _get(store, enqueued.ids[0])
        if wait:
            if not as_json:
                _print_state(record)
            if not processes_at(database_file(settings)):
                print_note("no process runs jobs of this database; start `asyncbg serve` or `asyncbg worker`")
            record = await _wait(store, record.id, timeout_s)
        if as_json or record.state.is_final or not wait:
            _print_state(record, as_json=as_json)
        if wait and not record.state.is_final:
            raise JobTimeoutError(record.id, timeout_s or 0)
        return _exit_code(record)


async def _wait(store: Backend, job_id: str, timeout_s: float | None) -> JobRecord:
    """Return the final record, or the latest one on timeout."""
    clock = SystemClock()
    deadline_ms = None if timeout_s is None else clock.monotonic_ms() + int(timeout_s * 1000)
    while True:
        record = await _get(store, job_id)
        if record.state.is_final or (deadline_ms is not None and clock.monotonic_ms() >= deadline_ms):
            return record
        await asyncio.sleep(_POLL_S)


def _parse_object(text: str) -> dict[str, Any]:
    """Parse the JSON object of the command line, or of standard input for ``-``. Raises UsageError."""
    text = sys.stdin.read() if text == "-" else text
    try:
        value = json.loads(text)
    except ValueError as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"JSON is not well-formed{where}; give an object such as '{{\"name\": 1}}'") from None
    if not isinstance(value, dict):
        raise UsageError("JSON must be an object such as '{\"name\": 1}'")
    return value


# Shared helpers


@asynccontextmanager
async def _open_store(profile: str | None, *, create: bool = False) -> AsyncIterator[SQLiteBackend]:
    """Open the store. Prints a note if the database does not exist."""
    settings = load_settings(**overrides(profile))
    if not create and not has_database(path := database_file(settings)):
        print_note(f"there is no database {path} yet; set ASYNCBG_DATABASE_URL to use another")
    async with open_store(settings, create=create) as store:
        yield store


async def _get(store: Backend, job_id: str) -> JobRecord:
    record = await store.get(job_id)
    if record is None:
        raise JobNotFoundError(job_id)
    return record


def _exit_code(record: JobRecord) -> int:
    """Return DONE unless the job has failed or was cancelled. Raises JobFailedError, JobCancelledError."""
    if record.state is JobState.FAILED and record.error is not None:
        raise JobFailedError(record.id, record.error.type, record.error.message)
    if record.state is JobState.CANCELLED:
        raise JobCancelledError(record.id, record.cancel_reason or "")
    return ExitCode.DONE


def _states(words: Sequence[str]) -> frozenset[JobState]:
    names = [name for word in words for name in word.split(",") if name]
    if not set(names) <= set(JobState):
        raise UsageError(f"--state must be one of {', '.join(JobState)}")
    return frozenset(map(JobState, names))


def _position(cursor: str | None) -> int | None:
    try:
        return _CURSOR.validate_python(cursor)
    except ValidationError:
        raise UsageError('--cursor must be the "next" of a previous page') from None


# Printing


def _job_json(record: JobRecord) -> dict[str, Any]:
    """Return the job as in the API, with result and progress redacted too."""
    shown = JobOut.from_record(record).model_dump(mode="json")
    return shown | {"result": redact_json(shown["result"]), "progress": redact_json(shown["progress"])}


def _row(record: JobRecord) -> Sequence[str]:
    shown = _job_json(record)
    return (
        record.id, record.task, record.state.value, f"{record.attempt}/{record.max_attempts}", shown["created_at"],
        _progress_text(shown["progress"]) if shown["progress"] else "", _arguments(shown),
    )  # fmt: skip


def _arguments(shown: dict[str, Any]) -> str:
    size = shown.get("omitted", {}).get("args")
    return _compact(shown["args"]) if size is None else f"{size:,} bytes: see asyncbg jobs show"


def _progress_text(progress: dict[str, Any]) -> str:
    """Format progress: ``3/10 rows: message``, without missing parts."""
    total = "" if progress["total"] is None else f"/{progress['total']:g}"
    unit = f" {progress['unit']}" if progress["unit"] else ""
    message = f": {progress['message']}" if progress["message"] else ""
    return f"{progress['current']:g}{total}{unit}{message}"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _print_job(record: JobRecord, *, as_json: bool) -> None:
    shown = _job_json(record)
    if as_json:
        print_json(shown)
        return
    del shown["links"]
    print_table(
        ("", ""), [(name, value if isinstance(value, str) else _compact(value)) for name, value in shown.items()]
    )


def _print_attempts(attempts: Sequence[dict[str, Any]]) -> None:
    """Print start, end and outcome of each attempt, and the traceback of each failed one."""
    if not attempts:
        return
    print_line("")
    columns = ("number", "worker", "started_at", "ended_at", "outcome", "error")
    rows = [{**one, "error": one["error"] and f"{one['error']['type']}: {one['error']['message']}"} for one in attempts]
    print_table(("attempt", *columns[1:]), [[str(row[name] or "") for name in columns] for row in rows])
    for one in attempts:
        if one["traceback"]:
            print_line(f"\nattempt {one['number']}:")
            for line in one["traceback"].splitlines():
                print_line(printable(line))


def _print_state(record: JobRecord, *, as_json: bool = False, remarks: str = "") -> None:
    """Print the job's id and state, and its result if it has one."""
    if as_json:
        _print_job(record, as_json=True)
        return
    result = f" {_compact(_job_json(record)['result'])}" if record.state is JobState.SUCCEEDED else ""
    print_line(printable(f"{record.id} {record.state}{remarks if record.state is JobState.RUNNING else ''}{result}"))


def _print_event(event: Event, epoch: str, *, as_json: bool) -> None:
    """Print one event on one line."""
    envelope = event.envelope(epoch)
    data = envelope["data"] = redact_json(envelope["data"])
    if as_json:
        print_json(envelope, indent=None)
        return
    detail = _progress_text(data) if event.type == EventType.PROGRESS else _compact(data) if data else ""
    print_line(printable(f"{rfc3339(event.at_ms)} {event.job_id} {event.task} {event.type} {detail}".rstrip()))
