"""Handle a user action with injected dependencies, resolved when the task runs and closed after it."""

from collections.abc import AsyncIterator
from typing import Annotated, Protocol

import fastapi
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from asyncbg import AsyncBG, BackgroundTasks, Depends, Personal, current_job
from asyncbg.service.inputs import Line, UserId, UserNumber, query_or_body
from asyncbg.service.integrations.activity import Activity
from asyncbg.service.integrations.mailer import Mailer
from asyncbg.service.integrations.notices import Notices
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.web.problem_route import ProblemRoute
from asyncbg.web.schemas import Accepted


class InjectedActionForm(BaseModel):
    """An action of a user."""

    action: Annotated[Line, Field(examples=["login"])]


class Notifier(Protocol):
    """Notifier of the operator about user actions."""

    @property
    def retries(self) -> int:
        """Return the number of attempts after the first."""
        ...

    @property
    def attempt_s(self) -> float:
        """Return the timeout of an attempt, in seconds."""
        ...

    async def notify(self, user_id: int, action: str) -> None:
        """Send the notification."""
        ...


class MailNotifier:
    """Notifier that mails the operator."""

    def __init__(self, mailer: Mailer, operator: str) -> None:
        self._mailer = mailer
        self._operator = operator
        self.retries, self.attempt_s = mailer.retries, mailer.attempt_s

    async def notify(self, user_id: int, action: str) -> None:
        """Send the message; its Message-ID derives from the job id."""
        job, subject = current_job(), f"User {user_id}: {action}"[:255]
        await job.require_lease()
        await self._mailer.send(
            to=self._operator,
            subject=subject,
            body=f"{subject}\n",
            message_id=f"<{job.id}@asyncbg>",
            attempt=job.attempt,
        )


class LogNotifier:
    """Notifier that writes to the notification log, used without a mail server."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self.retries, self.attempt_s = 3, 300.0

    async def notify(self, user_id: int, action: str) -> None:
        """Append one line."""
        await current_job().require_lease()
        await self._notices.append(f"user {user_id}", action)


def injected_workflow(bg: AsyncBG, *, notifier: Notifier, activity: Activity) -> APIRouter:
    """Return ``POST /action/{user_id}``; register the task ``notification_task``."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    async def open_notifier() -> AsyncIterator[Notifier]:
        yield notifier

    async def open_activity() -> AsyncIterator[Activity]:
        yield activity

    @bg.task(name="notification_task", retries=notifier.retries, timeout=notifier.attempt_s)
    async def notification_task(
        user_id: UserNumber,
        action: Annotated[Line, Personal("action")],
        mail: Notifier = Depends(open_notifier),  # noqa: B008 - a marker
        log: Activity = Depends(open_activity),  # noqa: B008 - a marker
    ) -> None:
        """Add a row to the activity log and notify the operator."""
        job = current_job()
        await log.record(user_id=user_id, action=action, job_id=job.id, owner=job.owner, guard=job.guard)
        await mail.notify(user_id, action)

    @router.post("/action/{user_id}", name="handle_action", **accepts(InjectedActionForm))
    async def action_route(
        user_id: UserId,
        form: Annotated[InjectedActionForm, fastapi.Depends(query_or_body(InjectedActionForm))],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept an action; the notifier and the activity log are injected when the task runs."""
        job = background_tasks.add_task(notification_task, user_id, form.action)
        return await accept("Action will be handled in the background", [job], background_tasks, response)

    return router
