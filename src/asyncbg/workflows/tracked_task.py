"""Start a long task under a name of the caller's own, and ask by that name how far it is."""

from collections.abc import Mapping
from typing import Annotated, Literal

import anyio
from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel

from asyncbg.api.inputs import TaskId
from asyncbg.api.problems import ProblemRoute
from asyncbg.api.schemas import Accepted, accepted
from asyncbg.context import Progress
from asyncbg.fastapi import AsyncBG
from asyncbg.job import JobRecord, JobState
from asyncbg.settings import DemoSettings

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


class Started(Accepted):
    """A started task: also where to ask how far it is."""

    task_id: str
    check_progress_url: str


class TaskProgress(BaseModel):
    """How far a task is: ``progress`` of ``total`` items."""

    status: Status
    progress: int
    total: int
    message: str
