"""Start a long task under an id chosen by the caller, and report its progress by that id."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

import anyio
from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, Field

from asyncbg import AsyncBG, Job, JobState, Progress
from asyncbg.auth.caller import CurrentOwner
from asyncbg.core.job import JobRecord, ProgressValue
from asyncbg.errors import IdempotencyError
from asyncbg.service.inputs import TaskId, TaskName
from asyncbg.settings import DemoSettings
from asyncbg.web.inputs import IdempotencyKey
from asyncbg.web.problem_route import ProblemRoute, get_and_head
from asyncbg.web.problems import problem_docs
from asyncbg.web.schemas import Accepted, accepted

Status = Literal["queued", "running", "completed", "failed", "cancelled"]

_STATUS: Mapping[JobState, Status] = {
    JobState.WAITING: "queued",
    JobState.SCHEDULED: "queued",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


ItemsCount = Annotated[int, Field(ge=1, le=1_000_000)]


class Started(Accepted):
    """A started task, with the URL of its progress."""

    task_id: str
    check_progress_url: str


class TaskProgress(BaseModel):
    """The progress of a task: ``progress`` of ``total`` items."""

    status: Status
    progress: int
    total: int
    message: str


def tracked_task_workflow(bg: AsyncBG, *, settings: DemoSettings) -> APIRouter:
    """Return ``POST /start-task/{task_id}`` and ``GET /task-progress/{task_id}``; register ``long_running_task``."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    @bg.task(name="long_running_task")
    async def long_running_task(
        task_id: TaskName,
        items_count: ItemsCount,
        progress: Progress = Progress(),
    ) -> dict[str, int]:
        """Process the items one after the other."""
        progress.set(0, total=items_count, unit="items", message="starting")
        for item in range(1, items_count + 1):
            await anyio.sleep(settings.item_s)
            progress.set(item, message=f"item {item} of {items_count} done")
        return {"items": items_count}

    async def start(task_id: str, items_count: int, owner: str, idempotency_key: str | None) -> Job:
        """Return the job of that task id. Raises HTTPException if the id is taken by another request."""
        sent = None if idempotency_key is None else f"{idempotency_key} {items_count}"
        try:
            job = await bg.submit(
                long_running_task.name, {"task_id": task_id, "items_count": items_count}, owner=owner,
                idempotency_key=_key(task_id), fingerprint=sent and hashlib.sha256(sent.encode()).hexdigest(),
            )  # fmt: skip
        except IdempotencyError:
            raise _taken() from None
        if not job.created and sent is None:
            raise _taken()
        return job

    @router.post(
        "/start-task/{task_id}",
        name="start_task",
        status_code=202,
        responses=problem_docs(409, 413, 415, 422, 429, 503),
    )
    async def start_task_route(
        task_id: TaskId,
        items_count: Annotated[ItemsCount, Query(examples=[10])],
        owner: CurrentOwner,
        response: Response,
        idempotency_key: IdempotencyKey = None,
    ) -> Started:
        """Start a long task. Its id stays taken while its job is retained."""
        job = await start(task_id, items_count, owner, idempotency_key)
        body = accepted("Task started in the background", [job], response)
        return Started(**body.model_dump(), task_id=task_id, check_progress_url=f"/task-progress/{task_id}")

    @get_and_head(router, "/task-progress/{task_id}", name="show_task_progress", responses=problem_docs(404, 422, 503))
    async def task_progress_route(task_id: TaskId, owner: CurrentOwner) -> TaskProgress:
        """Return the progress of the caller's task with this id."""
        known = await bg.backend.find_by_key(owner, _key(task_id))
        if known is None:
            raise HTTPException(404, "no task with this id was started")
        return _progress(await bg.get(known.id))

    return router


def _key(task_id: str) -> str:
    """Return the idempotency key that reserves a task id."""
    return f"task-id/{task_id}"


def _taken() -> HTTPException:
    return HTTPException(409, "a task with this id exists; choose another id")


def _progress(record: JobRecord) -> TaskProgress:
    progress = record.progress or ProgressValue(message="waiting for its turn")
    message = progress.message
    if record.error is not None and record.state is not JobState.SUCCEEDED:
        message = record.error.message
    elif record.state is JobState.CANCELLED:
        message = record.cancel_reason or "cancelled"
    total = progress.total or json.loads(record.args).get("items_count", 0)
    return TaskProgress(status=_STATUS[record.state], progress=int(progress.current), total=int(total), message=message)
