"""Run tasks chosen by name; errors are recorded on the job, published and retried, never raised in the route."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from asyncbg import AsyncBG, BackgroundTasks, Personal, Task, current_job
from asyncbg.service.inputs import Message, UserId, UserNumber, query_or_body
from asyncbg.service.integrations.notices import Notices
from asyncbg.service.integrations.workspace import Workspace
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.web.problem_route import ProblemRoute
from asyncbg.web.schemas import Accepted

DataId = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class SafeTaskForm(BaseModel):
    """A message for the user, and the id of data to process."""

    message: Annotated[Message, Field(examples=["Your report is ready"])]
    data_id: Annotated[DataId | None, Field(description="also process this data", examples=[42])] = None


def safe_task_workflow(bg: AsyncBG, *, notices: Notices, workspace: Workspace) -> APIRouter:
    """Return ``POST /safe-task/{user_id}``; register ``send_notification_task``, ``process_data_task``, ``cleanup``."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    @bg.task(name="send_notification_task", retries=3, timeout=30)
    async def send_notification_task(user_id: UserNumber, message: Annotated[Message, Personal]) -> None:
        """Append a notification for the user to the notification log."""
        await current_job().require_lease()
        await notices.append(f"user {user_id}", message)

    @bg.task(name="process_data_task", timeout=60)
    async def process_data_task(data_id: DataId) -> dict[str, int]:
        """Process the data of that id into a working file of the batch. Raises ValueError for an invalid id."""
        if data_id < 1:
            raise ValueError(f"invalid data ID {data_id}; ids begin with 1")
        job = current_job()
        await workspace.write(job.batch, job.task, f"data {data_id} processed\n")
        return {"data_id": data_id}

    @bg.task(name="cleanup", retries=3, timeout=60)
    async def cleanup(user_id: UserNumber) -> dict[str, int]:
        """Remove the working files of the batch, and those of batches whose clean-up never ran."""
        return {"files_removed": await workspace.remove(current_job().batch) + await workspace.sweep()}

    tasks: Mapping[str, Task[..., Any]] = {
        task.name: task for task in (send_notification_task, process_data_task, cleanup)
    }

    @router.post("/safe-task/{user_id}", name="run_safe_task", **accepts(SafeTaskForm))
    async def safe_task_route(
        user_id: UserId,
        form: Annotated[SafeTaskForm, Depends(query_or_body(SafeTaskForm))],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept a notification, with ``data_id`` its processing, and a clean-up, each task chosen by its name."""
        chosen: dict[str, tuple[Any, ...]] = {"send_notification_task": (user_id, form.message)}
        if form.data_id is not None:
            chosen["process_data_task"] = (form.data_id,)
        chosen["cleanup"] = (user_id,)
        jobs = [background_tasks.add_task(tasks[name], *args) for name, args in chosen.items()]
        return await accept("Safe task started in the background", jobs, background_tasks, response)

    return router
