"""Send a notification: one line in the notification log."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel

from asyncbg import AsyncBG, BackgroundTasks, Personal, current_job
from asyncbg.service.inputs import EmailAddress, Message, query_or_body
from asyncbg.service.integrations.notices import Notices
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.web.problem_route import ProblemRoute
from asyncbg.web.schemas import Accepted


class NotificationForm(BaseModel):
    """The text of a notification."""

    message: Message = "some notification"


def notification_workflow(bg: AsyncBG, *, notices: Notices) -> APIRouter:
    """Return ``POST /send-notification/{email}``; register the task ``send_notification``."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    @bg.task(name="send_notification", retries=3, timeout=30)
    async def send_notification(
        email: Annotated[EmailAddress, Personal("email")], message: Annotated[Message, Personal]
    ) -> None:
        """Append ``notification for EMAIL: MESSAGE`` to the notification log."""
        await current_job().require_lease()
        await notices.append(email, message)

    @router.post("/send-notification/{email}", name="send_notification", **accepts(NotificationForm))
    async def send_notification_route(
        email: Annotated[EmailAddress, Path(examples=["ada@example.com"]), Personal("email")],
        form: Annotated[NotificationForm, Depends(query_or_body(NotificationForm))],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept a notification; it is sent in the background."""
        job = background_tasks.add_task(send_notification, email, form.message)
        return await accept("Notification will be sent in the background", [job], background_tasks, response)

    return router
