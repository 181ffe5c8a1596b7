"""Send an e-mail: a MIME message handed to the configured SMTP server."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from asyncbg.api.inputs import MAX_TEXT_BODY_BYTES, EmailAddress, Line, LongText, query_or_body, refuse_input
from asyncbg.api.problems import limited_to
from asyncbg.api.schemas import Accepted
from asyncbg.context import current_job
from asyncbg.event_model import EventModel
from asyncbg.fastapi import AsyncBG, BackgroundTasks
from asyncbg.redact import Personal
from asyncbg.services.mail_address import AddressError
from asyncbg.services.mailer import Mailer
from asyncbg.workflows.acceptance import accept, accepts


class EmailForm(BaseModel):
    """A message to one recipient."""

    to_email: Annotated[EmailAddress, Field(examples=["ada@example.com"])]
    subject: Annotated[Line, Field(examples=["Welcome"])]
    body: Annotated[LongText, Field(examples=["Good to see you."])]


class EmailSent(EventModel):
    """The mail server took the message."""

    event_type = "email.sent"

    message_id: str = Field(
        description="its Message-ID, made from the job's id",
        examples=["<01a205a8-7c81-7000-a84f-7e8968cdc313@asyncbg>"],
    )
    refused: list[int] = Field(
        default=[], description="the reply code of each recipient it refused while it took the message for others"
    )


def email_workflow(bg: AsyncBG, *, mailer: Mailer) -> APIRouter:
    """``POST /send-email/`` and its task ``send_email``."""
    router = APIRouter(route_class=limited_to(MAX_TEXT_BODY_BYTES), tags=["workflows"])

    @bg.task(name="send_email", retries=mailer.retries, timeout=mailer.attempt_s)
    async def send_email(
        to_email: Annotated[EmailAddress, Personal("email")],
        subject: Annotated[Line, Personal],
        body: Annotated[LongText, Personal],
    ) -> dict[str, str]:
        """Hand a message to the SMTP server; its Message-ID is the job's, so that a repeat can be recognised."""
        job = current_job()
        message_id = f"<{job.id}@asyncbg>"
        await job.require_lease()
        sent = await mailer.send(to=to_email, subject=subject, body=body, message_id=message_id, attempt=job.attempt)
        await job.publish(EmailSent(message_id=message_id, refused=list(sent.refused)))
        return {"message_id": message_id}

    @router.post("/send-email/", name="send_email", **accepts(EmailForm))
    async def send_email_route(
        form: Annotated[EmailForm, Depends(query_or_body(EmailForm))],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept an e-mail. Send the JSON form: a query ends up in access logs."""
        try:
            mailer.check_domain(form.to_email)
        except AddressError as error:
            raise refuse_input(("to_email",), str(error), "email") from None
        job = background_tasks.add_task(send_email, form.to_email, form.subject, form.body)
        return await accept("Email will be sent in the background", [job], background_tasks, response)

    return router
