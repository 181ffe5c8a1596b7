"""Run tasks chosen by name; whatever goes wrong is recorded on the job, announced and retried, never raised here."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from asyncbg.api.inputs import Message, UserId, UserNumber, query_or_body
from asyncbg.api.problems import ProblemRoute
from asyncbg.api.schemas import Accepted
from asyncbg.background import Task
from asyncbg.context import require_lease
from asyncbg.fastapi import AsyncBG, BackgroundTasks
from asyncbg.redact import Personal
from asyncbg.services.notices import Notices
from asyncbg.services.workspace import Workspace
from asyncbg.workflows.acceptance import accept, accepts


class SafeTaskForm(BaseModel):
    """What to tell the user."""

    message: Annotated[Message, Field(examples=["Your report is ready"])]


def safe_task_workflow(bg: AsyncBG, *, notices: Notices, workspace: Workspace) -> APIRouter:
    """``POST /safe-task/{user_id}`` and its tasks ``send_notification_task`` and ``cleanup``."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    @bg.task(name="send_notification_task", retries=3, timeout=30)
    async def send_notification_task(user_id: UserNumber, message: Annotated[Message, Personal]) -> None:
        """Append a notification for the user to the notification log."""
        await require_lease()
        await notices.append(f"user {user_id}", message)

    @bg.task(name="cleanup", retries=3, timeout=60)
    async def cleanup(user_id: UserNumber) -> dict[str, int]:
        """Remove the working files of batches whose own clean-up never ran."""
        return {"files_removed": await workspace.sweep()}

    def task_named(name: str) -> Task[..., Any]:
        return Task(bg.enqueuer, bg.schedules, bg.registry.get(name))

    @router.post("/safe-task/{user_id}", name="run_safe_task", **accepts(SafeTaskForm))
    async def safe_task_route(
        user_id: UserId,
        form: Annotated[SafeTaskForm, Depends(query_or_body(SafeTaskForm))],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept a notification and a clean-up, both found by their names in the registry."""
        chosen: dict[str, tuple[Any, ...]] = {"send_notification_task": (user_id, form.message), "cleanup": (user_id,)}
        jobs = [background_tasks.add_task(task_named(name), *args) for name, args in chosen.items()]
        return await accept("Safe task started in the background", jobs, background_tasks, response)

    return router
