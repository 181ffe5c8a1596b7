"""Response schemas: a job, a page of jobs, attempts, and accepted work."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast

from fastapi import Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from asyncbg.auth.access import mount_prefix
from asyncbg.core.clock import rfc3339
from asyncbg.core.job import Attempt, JobRecord, JobState, ProgressValue
from asyncbg.core.stored_arguments import shown_arguments
from asyncbg.core.stored_text import load_json
from asyncbg.engine.threads import Threads
from asyncbg.privacy import redact
from asyncbg.privacy.marks import masked_arguments, masked_result

T = TypeVar("T")

EXAMPLE_ID = "019ab3f0-5a1e-7000-8000-3f1c0de5a7b2"
_CURSOR_MARK = "n"
_MAX_CURSOR_CHARS = 40
_MAX_N = 2**63 - 1


MAX_LISTED_BYTES = 4096
"""Lists leave out larger arguments and results."""
_MAX_INLINE_BYTES = 32_768
_threads = Threads(2)


async def no_store(response: Response) -> None:
    """A dependency that forbids caching of the response, which is private and changes (RFC 9111, 5.2.2.5)."""
    response.headers["Cache-Control"] = "no-store"


class ProgressOut(BaseModel):
    """The progress of a job."""

    current: int | float = Field(description="amount done, in `unit`")
    total: int | float | None = Field(description="total amount; null where unknown")
    message: str = Field(description="a message for humans")
    unit: str


class JobErrorOut(BaseModel):
    """Why a job failed."""

    type: str = Field(description="the class of the error")
    message: str


class AttemptOut(BaseModel):
    """One attempt of a job. Times are RFC 3339 in UTC."""

    number: int = Field(examples=[1])
    worker: str | None = Field(description="the process that ran it, where known")
    started_at: str = Field(examples=["2026-11-22T10:15:00.250Z"])
    ended_at: str | None = Field(description="null while it runs", examples=["2026-11-22T10:15:01.000Z"])
    outcome: Literal["succeeded", "failed", "cancelled", "released", "lost"] | None = Field(
        description="`released`: returned to the queue at a shutdown; `lost`: its process ended; null while it runs"
    )
    error: JobErrorOut | None
    traceback: str | None = Field(description="the traceback, without personal values; null where none is stored")

    @classmethod
    def from_attempt(cls, attempt: Attempt) -> "AttemptOut":
        """Return the schema of ``attempt``."""
        ended, error = attempt.ended_at_ms, attempt.error
        return cls.model_construct(
            number=attempt.number,
            worker=attempt.worker,
            started_at=rfc3339(attempt.started_at_ms),
            ended_at=None if ended is None else rfc3339(ended),
            outcome=attempt.outcome,  # type: ignore[arg-type]  # one of those that are named
            error=None if error is None else JobErrorOut(type=error.type, message=error.message),
            traceback=attempt.traceback,
        )


class AttemptList(BaseModel):
    """The latest attempts of a job, oldest first."""

    items: list[AttemptOut]


class JobLinks(BaseModel):
    """The URLs of a job."""

    self: str = Field(description="the job")
    events: str = Field(description="its events, as a stream (SSE)")
    cancel: str = Field(description="POST here to cancel it")
    retry: str = Field(description="POST here to run it again once it is final")


class JobOut(BaseModel):
    """A job. Times are RFC 3339 in UTC; personal values in arguments and result are replaced by pseudonyms."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(examples=[_example(JobOut)]))

    id: str = Field(examples=[EXAMPLE_ID])
    task: str = Field(examples=["send_email"])
    queue: str = Field(examples=["default"])
    state: JobState
    owner: str = Field(examples=["anonymous"], description="who submitted it")
    priority: int = Field(description="higher runs first")
    batch: str = Field(description="the id of the first job of its request", examples=[EXAMPLE_ID])
    tags: list[str]
    durable: bool = Field(description="false: it cannot survive a restart")
    attempt: int = Field(description="attempts begun")
    max_attempts: int
    created_at: str = Field(examples=["2026-11-22T10:15:00.250Z"])
    run_at: str = Field(description="when it is, or was, due", examples=["2026-11-22T10:15:00.250Z"])
    started_at: str | None
    finished_at: str | None
    progress: ProgressOut | None
    result: Any = Field(description="the return value, personal parts as pseudonyms; null until the job succeeded")
    error: JobErrorOut | None
    args: dict[str, Any]
    omitted: dict[str, int] = Field(
        default={},
        exclude_if=lambda sizes: not sizes,
        description="in a list: sizes in bytes of `args` and `result` that are left out; `GET /jobs/{id}` has them",
    )
    hint: str | None = Field(
        default=None, exclude_if=lambda hint: hint is None, description="why the job does not run, where known"
    )
    links: JobLinks

    @classmethod
    def from_record(cls, record: JobRecord, prefix: str = "", *, hint: str | None = None) -> "JobOut":
        """Return the schema of ``record``; ``prefix`` is the path prefix of the library's routes."""
        return cls.model_construct(**_shown(record, prefix), hint=hint)


class AcceptedJob(BaseModel):
    """An accepted job."""

    id: str = Field(examples=[EXAMPLE_ID])
    task: str = Field(examples=["send_email"])
    state: JobState
    url: str = Field(examples=[f"/jobs/{EXAMPLE_ID}"])
    events_url: str = Field(examples=[f"/jobs/{EXAMPLE_ID}/events"])


class Accepted(BaseModel):
    """The body of every 202: the accepted jobs and the URLs to follow them. ``Location`` is the first job's URL."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra=lambda schema: schema.update(examples=[_example(Accepted)])
    )

    message: str = Field(examples=["send_email was accepted"])
    jobs: list[AcceptedJob]
    events_url: str = Field(description="the events of all these jobs", examples=[f"/events?batch={EXAMPLE_ID}"])


class ChangedJob(JobOut, Accepted):
    """The answer to a change of a job: the body of a 202 and the current job."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra=lambda schema: schema.update(examples=[_example(ChangedJob)])
    )


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(examples=[_example(JobPage)]))

    items: list[JobOut]
    next: str | None = Field(description="the `cursor` of the next page; null on the last one")


class JobLike(Protocol):
    """The attributes that ``accepted`` reads: job handles and job records have them."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...

    @property
    def task(self) -> str:
        """The name of its task."""
        ...

    @property
    def state(self) -> JobState:
        """The job's state."""
        ...

    @property
    def batch(self) -> str:
        """The id of the first job of its request."""
        ...


def accepted(message: str, jobs: Sequence[JobLike], response: Response, *, prefix: str = "", **extra: Any) -> Accepted:
    """Return the body of a 202 for the stored ``jobs`` of one request, in order; set ``Location`` on ``response``.

    ``extra`` are additional members.
    """
    response.headers["Location"] = job_url(prefix, jobs[0].id)
    return Accepted(
        message=message,
        jobs=[_accepted_job(job, prefix) for job in jobs],
        events_url=f"{prefix}/events?batch={jobs[0].batch}",
        **extra,
    )


def changed(message: str, record: JobRecord, response: Response, *, prefix: str = "") -> ChangedJob:
    """Return the body of a 202 for a change of one job; set ``Location`` on ``response``."""
    body = accepted(message, [record], response, prefix=prefix)
    return ChangedJob.model_construct(
        message=body.message, jobs=body.jobs, events_url=body.events_url, **_shown(record, prefix)
    )


async def run_off_loop(show: Callable[[], T], records: Sequence[JobRecord]) -> T:
    """Return what ``show`` returns, run in a thread where ``records`` are large: redacting 1 MiB takes 0.2 s."""
    size = sum(len(record.args) + len(record.result or "") for record in records)
    return show() if size <= _MAX_INLINE_BYTES else cast(T, await _threads.run_or_abandon(show))


def job_url(prefix: str, job_id: str) -> str:
    """Return the path of a job."""
    return f"{prefix}/jobs/{job_id}"


def prefix_of(request: Request) -> str:
    """Return the path prefix of the library's routes as a client sees it: ``/bg``, or nothing at the root.

    It is the part before the matched route's own path, however the router was mounted, and also behind a proxy that
    strips ``root_path``.
    """
    path, root_path = str(request.scope["path"]), str(request.scope.get("root_path", "")).rstrip("/")
    if root_path and path != root_path and not path.startswith(f"{root_path}/"):
        path = root_path + path
    return mount_prefix(path, request.scope["route"].path_format)


def cursor_after(record: JobRecord) -> str:
    """Return the opaque cursor of the page that begins after ``record``."""
    return base64.urlsafe_b64encode(f"{_CURSOR_MARK}{record.n}".encode()).decode().rstrip("=")


def _read_cursor(value: object) -> object:
    """Return the position that a cursor encodes. Raise PydanticCustomError for an invalid one."""
    if value is None or value == "":
        return None
    try:
        text = str(value)
        padded = text[:_MAX_CURSOR_CHARS] + "=" * (-len(text) % 4)
        mark, digits = (decoded := base64.b64decode(padded, "-_", validate=True).decode("ascii"))[:1], decoded[1:]
    except (binascii.Error, ValueError):
        mark, digits = "", ""
    if mark != _CURSOR_MARK or not digits.isdecimal() or not 0 < int(digits) <= _MAX_N:
        raise PydanticCustomError("cursor", 'should be the "next" of an earlier page, or be left out')
    return int(digits)


Cursor = Annotated[int | None, BeforeValidator(_read_cursor), WithJsonSchema({"type": "string", "maxLength": 40})]
"""A query parameter that decodes a cursor to a position."""


def _shown(record: JobRecord, prefix: str) -> dict[str, Any]:
    url = job_url(prefix, record.id)
    return {
        "id": record.id,
        "task": record.task,
        "queue": record.queue,
        "state": record.state,
        "owner": record.owner,
        "priority": record.priority,
        "batch": record.batch,
        "tags": [redact(tag) for tag in record.tags],
        "durable": record.durable,
        "attempt": record.attempt,
        "max_attempts": record.max_attempts,
        "created_at": rfc3339(record.created_at_ms),
        "run_at": rfc3339(record.run_at_ms),
        "started_at": _time(record.started_at_ms),
        "finished_at": _time(record.finished_at_ms),
        "progress": ProgressOut(**record.progress.as_dict()) if record.progress else None,
        "result": masked_result(load_json(record.result), record.personal) if record.result else None,
        "error": JobErrorOut(**record.error.as_dict()) if record.error else None,
        "args": masked_arguments(shown_arguments(record.args), record.personal),
        "omitted": record.omitted,
        "links": JobLinks(self=url, events=f"{url}/events", cancel=f"{url}/cancel", retry=f"{url}/retry"),
    }


def _accepted_job(job: JobLike, prefix: str) -> AcceptedJob:
    url = job_url(prefix, job.id)
    return AcceptedJob(id=job.id, task=job.task, state=job.state, url=url, events_url=f"{url}/events")


def _time(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


_EXAMPLE = JobRecord(
    n=17,
    id=EXAMPLE_ID,
    task="send_notification",
    queue="default",
    state=JobState.RUNNING,
    owner="anonymous",
    priority=0,
    batch=EXAMPLE_ID,
    tags=("welcome",),
    durable=True,
    attempt=1,
    max_attempts=4,
    crashes=0,
    created_at_ms=1_795_342_500_250,
    run_at_ms=1_795_342_500_250,
    started_at_ms=1_795_342_500_253,
    finished_at_ms=None,
    args='{"email": "[email:6f1d20a3]", "message": "hello"}',
    progress=ProgressValue(current=3, total=10, message="3 of 10 sent", unit="messages"),
)


def _example(model: type[BaseModel]) -> dict[str, Any]:
    """Return an example of ``model`` for the OpenAPI document."""
    job = JobOut.from_record(_EXAMPLE).model_dump(mode="json")
    body = accepted("send_notification was accepted", [_EXAMPLE], Response()).model_dump(mode="json")
    if model is JobPage:
        return {"items": [job], "next": cursor_after(_EXAMPLE)}
    return (body if issubclass(model, Accepted) else {}) | (job if issubclass(model, JobOut) else {})
