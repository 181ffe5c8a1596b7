"""The routes of jobs: submit, list, show, wait, cancel and retry."""

import hashlib
import json
import math
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from asyncbg.auth.audit import Audit, audited
from asyncbg.auth.caller import CurrentCaller, recheck_caller
from asyncbg.core.ids import is_job_id
from asyncbg.core.job import JobState
from asyncbg.core.stored_text import is_one_line, is_storable
from asyncbg.engine import Engine
from asyncbg.engine.registry import unknown_task_hint
from asyncbg.errors import JobNotFoundError
from asyncbg.store.base import JobQuery
from asyncbg.web.bulk import add_bulk_route
from asyncbg.web.inputs import IdempotencyKey
from asyncbg.web.problem_route import MAX_BODY_BYTES, ProblemRoute, get_and_head, limited_to
from asyncbg.web.problems import problem_docs
from asyncbg.web.schemas import (
    EXAMPLE_ID,
    MAX_LISTED_BYTES,
    Accepted,
    AttemptList,
    AttemptOut,
    ChangedJob,
    Cursor,
    JobOut,
    JobPage,
    accepted,
    changed,
    cursor_after,
    no_store,
    prefix_of,
    run_off_loop,
)

_EXAMPLE: dict[str, Any] = {
    "task": "send_notification",
    "args": {"email": "ada@example.com", "message": "hello"},
    "delay_s": 1.5,
    "priority": 5,
    "tags": ["welcome"],
}

_YEAR_S = 31_536_000
_MAX_DEPTH = 64
_MAX_OTHER_BYTES = 64 * 1024


def _text(text: str) -> str:
    """Return a text that can be stored and encoded. Raise PydanticCustomError for any other."""
    if not is_storable(text):
        raise PydanticCustomError("text", "should hold no NUL character and no lone surrogate")
    return text


def _one_line(text: str) -> str:
    """Return a text of one line. Raise PydanticCustomError for any other."""
    if not is_one_line(text):
        raise PydanticCustomError("line", "should be one line without control characters")
    return text


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object that can be stored: only storable texts, finite numbers, and limited nesting."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _text(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise PydanticCustomError("finite_number", "should hold only finite numbers")
        if not inner:
            return value
        level = inner
    raise PydanticCustomError("too_deep", "should not be nested deeper than 64 levels")


def _split(value: object) -> object:
    """Split comma-separated values, and drop empty ones."""
    return [word for item in value for word in str(item).split(",") if word] if isinstance(value, list) else value


async def _job_id(job_id: Annotated[str, Path(description="the job's id", examples=[EXAMPLE_ID])]) -> str:
    """Return the job id of the path. Raise JobNotFoundError for a malformed one."""
    if not is_job_id(job_id):
        raise JobNotFoundError("?")
    return job_id


async def _prefix(request: Request) -> str:
    return prefix_of(request)


Name = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_text)]
Filter = Annotated[str | None, Query(max_length=255), AfterValidator(lambda value: _text(value) if value else None)]
States = Annotated[list[JobState], BeforeValidator(_split), Query(description="one or more, with commas between")]
JobId = Annotated[str, Depends(_job_id)]
Prefix = Annotated[str, Depends(_prefix)]
Wait = Annotated[
    float, Query(ge=0, le=60, allow_inf_nan=False, description="seconds to wait for a final state before answering")
]


class Submission(BaseModel):
    """A request to run a registered task."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [_EXAMPLE]},
    )

    task: Name = Field(description="the name of a registered task")
    args: Annotated[dict[str, Any], AfterValidator(_storable)] = Field(default={}, description="its arguments by name")
    delay_s: float | None = Field(
        default=None, ge=0, le=_YEAR_S, allow_inf_nan=False, strict=True, description="seconds to wait before it runs"
    )
    priority: int | None = Field(default=None, ge=-1000, le=1000, strict=True, description="higher runs first")
    tags: list[Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_one_line)]] = Field(
        default=[], max_length=32, description="tags to search it by"
    )

    def fingerprint(self) -> str:
        """Return a hash that distinguishes this submission from another one with the same idempotency key."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class CancelRequest(BaseModel):
    """The optional body of a cancel request."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "no longer needed"}]})

    reason: Annotated[str, StringConstraints(max_length=500), AfterValidator(_text)] = Field(
        default="", description="stored with the job's event; up to 500 characters"
    )


def jobs_router(engine: Engine, audit: Audit | None = None) -> APIRouter:
    """Return the routes under ``/jobs``; cancels and retries are recorded in ``audit``."""
    most = engine.settings.jobs.max_args_bytes
    route_class = ProblemRoute if most <= MAX_BODY_BYTES else limited_to(most + _MAX_OTHER_BYTES)
    router = APIRouter(route_class=route_class, tags=["jobs"], dependencies=[Depends(no_store)])

    @router.post("/jobs", status_code=202, responses=problem_docs(400, 404, 413, 415, 422, 429, 503))
    async def submit_job(
        submission: Submission,
        caller: CurrentCaller,
        prefix: Prefix,
        response: Response,
        idempotency_key: IdempotencyKey = None,
    ) -> Accepted:
        """Submit a job. It is on disk when the response is sent."""
        job = await engine.submit(
            submission.task,
            submission.args,
            owner=caller.owner,
            delay_s=submission.delay_s,
            priority=submission.priority,
            tags=submission.tags,
            idempotency_key=idempotency_key,
            fingerprint=submission.fingerprint() if idempotency_key else None,
        )
        message = (
            f"{job.task} was accepted" if job.created else f"{job.task} was accepted before with this idempotency key"
        )
        return accepted(message, [job], response, prefix=prefix)

    @get_and_head(router, "/jobs", responses=problem_docs(422, 503))
    async def list_jobs(  # noqa: PLR0913, RUF100 - one parameter for each filter
        caller: CurrentCaller,
        prefix: Prefix,
        state: States = [],  # noqa: B006 - FastAPI copies it
        task: Filter = None,
        tag: Filter = None,
        batch: Filter = None,
        owner: Filter = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[Cursor, Query(description="`next` of the page before")] = None,
    ) -> JobPage:
        """List jobs, newest first."""
        if caller.visible_owner is not None and owner not in {None, caller.visible_owner}:
            return JobPage(items=[], next=None)
        query = JobQuery(
            states=frozenset(state), task=task, tag=tag, batch=batch, owner=caller.visible_owner or owner,
            before_n=cursor, limit=limit + 1, most_value_bytes=MAX_LISTED_BYTES,
        )  # fmt: skip
        records = await engine.backend.list(query)
        shown = records[:limit]
        following = cursor_after(shown[-1]) if len(records) > limit else None
        hints = [unknown_task_hint(record, engine._parts.registry) for record in shown]
        items = await run_off_loop(
            lambda: [JobOut.from_record(record, prefix, hint=hint) for record, hint in zip(shown, hints, strict=True)],
            shown,
        )
        return JobPage.model_construct(items=items, next=following)

    @get_and_head(router, "/jobs/{job_id}", responses=problem_docs(404, 422, 503))
    async def show_job(
        job_id: JobId, caller: CurrentCaller, request: Request, prefix: Prefix, wait: Wait = 0
    ) -> JobOut:
        """Show a job; with `wait`, respond once it is final, or after that many seconds."""
        record = caller.require_visible(await engine.get(job_id))
        if wait:
            record = await engine.wait(job_id, wait)
            await recheck_caller(request)
        hint = unknown_task_hint(record, engine._parts.registry)
        return await run_off_loop(lambda: JobOut.from_record(record, prefix, hint=hint), [record])

    @get_and_head(router, "/jobs/{job_id}/attempts", responses=problem_docs(404, 422, 503))
    async def show_attempts(job_id: JobId, caller: CurrentCaller) -> AttemptList:
        """Show the outcome of each attempt of a job, with error and traceback where it failed."""
        caller.require_visible(await engine.get(job_id))
        return AttemptList(items=[AttemptOut.from_attempt(attempt) for attempt in await engine.attempts(job_id)])

    add_bulk_route(router, engine, audit)

    @router.post("/jobs/{job_id}/cancel", status_code=202, responses=problem_docs(400, 404, 409, 413, 415, 422, 503))
    async def cancel_job(
        job_id: JobId,
        caller: CurrentCaller,
        prefix: Prefix,
        response: Response,
        request: Annotated[CancelRequest | None, Body()] = None,
    ) -> ChangedJob:
        """Cancel a job: at once if it is not running yet, by cancelling its coroutine if it is."""
        caller.require_visible(await engine.get(job_id))
        async with audited(audit, "job.cancel", job_id, who=caller.owner):
            await engine.cancel(job_id, request.reason if request else "")
        record = await engine.get(job_id)
        message = f"{record.task} is being cancelled"
        return await run_off_loop(lambda: changed(message, record, response, prefix=prefix), [record])

    @router.post("/jobs/{job_id}/retry", status_code=202, responses=problem_docs(404, 409, 413, 415, 422, 503))
    async def retry_job(job_id: JobId, caller: CurrentCaller, prefix: Prefix, response: Response) -> ChangedJob:
        """Run a final job again; its history stays."""
        caller.require_visible(await engine.get(job_id))
        async with audited(audit, "job.retry", job_id, who=caller.owner):
            await engine.retry(job_id)
        record = await engine.get(job_id)
        message = f"{record.task} will run again"
        return await run_off_loop(lambda: changed(message, record, response, prefix=prefix), [record])

    return router
