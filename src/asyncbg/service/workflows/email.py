"""Send an e-mail: a MIME message handed to the configured SMTP server, with an outcome for each recipient."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, Field, StringConstraints

from asyncbg import AsyncBG, BackgroundTasks, EventModel, Personal, current_job
from asyncbg.auth.caller import CurrentOwner
from asyncbg.service.inputs import MAX_TEXT_BODY_BYTES, BodyOnly, EmailAddress, Line, LongText, query_or_body
from asyncbg.service.integrations.attachments import (
    MAX_ATTACHMENT_BYTES,
    MAX_ATTACHMENTS,
    PATH,
    AttachmentError,
    Attachments,
)
from asyncbg.service.integrations.mail_address import AddressError
from asyncbg.service.integrations.mail_message import MAX_RECIPIENTS
from asyncbg.service.integrations.mailer import Mailer
from asyncbg.service.integrations.uploads import UploadSpaceError, UploadTooLargeError
from asyncbg.service.upload import OVERHEAD_BYTES, FilePart, too_large
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.web.inputs import refuse_input
from asyncbg.web.problem_route import limited_to
from asyncbg.web.problems import problem_docs
from asyncbg.web.schemas import Accepted

Address = Annotated[EmailAddress, Personal("email")]
Addresses = Annotated[list[Address], Field(max_length=MAX_RECIPIENTS - 1)]
FilePath = Annotated[str, StringConstraints(pattern=PATH), Personal("file")]
FilePaths = Annotated[list[FilePath], Field(max_length=MAX_ATTACHMENTS)]

_UPLOAD_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class EmailForm(BaseModel):
    """A message. Optional fields are read from the JSON body only."""

    to_email: Annotated[EmailAddress, Field(examples=["ada@example.com"])]
    subject: Annotated[Line, Field(examples=["Welcome"])]
    body: Annotated[LongText, Field(examples=["Good to see you."])]
    html: Annotated[LongText | None, BodyOnly, Field(description="HTML alternative of the text")] = None
    reply_to: Annotated[EmailAddress | None, BodyOnly, Field(description="address for replies")] = None
    cc: Annotated[Addresses, BodyOnly, Field(description="further recipients, visible to all")] = []
    bcc: Annotated[Addresses, BodyOnly, Field(description="further recipients, hidden from the others")] = []
    attachments: Annotated[
        FilePaths, BodyOnly, Field(description="files by the `path` in the response of `POST /attachments`")
    ] = []


class AttachmentUploaded(BaseModel):
    """An uploaded attachment; ``path`` is valid for a week."""

    path: str = Field(examples=["/attachments/0f8fad5bd9cb469fa16570867728950e/report.pdf"])
    file_name: str
    size: int


class EmailSent(EventModel):
    """The mail server accepted the message."""

    event_type = "email.sent"

    message_id: str = Field(
        description="its Message-ID, made from the job's id",
        examples=["<01a205a8-7c81-7000-a84f-7e8968cdc313@asyncbg>"],
    )
    refused: list[int] = Field(
        default=[], description="reply codes of the recipients it refused while it accepted the message for others"
    )


def email_workflow(bg: AsyncBG, *, mailer: Mailer, files: Attachments) -> APIRouter:
    """Return ``POST /send-email/`` and ``POST /attachments``; register the task ``send_email``."""
    router = APIRouter(route_class=limited_to(MAX_TEXT_BODY_BYTES), tags=["workflows"])
    uploads = APIRouter(route_class=limited_to(MAX_ATTACHMENT_BYTES + OVERHEAD_BYTES), tags=["workflows"])

    @bg.task(name="send_email", retries=mailer.retries, timeout=mailer.attempt_s)
    async def send_email(
        to_email: Address,
        subject: Annotated[Line, Personal],
        body: Annotated[LongText, Personal],
        html: Annotated[LongText | None, Personal] = None,
        reply_to: Address | None = None,
        cc: Addresses | None = None,
        bcc: Addresses | None = None,
        attachments: FilePaths | None = None,
        only: Addresses | None = None,
        message_id: str | None = None,
    ) -> dict[str, Any]:
        """Send a message to the SMTP server; its Message-ID derives from the job id, so that repeats can be detected.

        Recipients that the server refused temporarily are retried by a separate job with ``only`` them.
        """
        job = current_job()
        message_id = message_id or f"<{job.id}@asyncbg>"
        await job.require_lease()
        sent = await mailer.send(
            to=to_email, subject=subject, body=body, message_id=message_id, html=html, reply_to=reply_to, cc=cc or (),
            bcc=bcc or (), attachments=await files.load(attachments or (), owner=job.owner), only=only or (),
            attempt=job.attempt,
        )  # fmt: skip
        await job.publish(EmailSent(message_id=message_id, refused=list(sent.refused)))
        result: dict[str, Any] = {"message_id": message_id}
        if len(sent.replies) > 1:
            result["recipients"] = [_outcome(number, code) for number, code in enumerate(sent.replies, 1)]
        if sent.later:
            later = send_email.options(
                delay=mailer.delay_s(1), owner=job.owner, tags=job.tags, idempotency_key=f"{job.id}/later"
            )
            follow = await later.enqueue(
                to_email, subject, body, html, reply_to, cc, bcc, attachments, list(sent.later), message_id
            )
            result["later"] = follow.id
        return result

    @router.post("/send-email/", name="send_email", **accepts(EmailForm))
    async def send_email_route(
        form: Annotated[EmailForm, Depends(query_or_body(EmailForm))],
        owner: CurrentOwner,
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept an e-mail. Prefer the JSON form: queries are written to access logs."""
        _check_addresses(mailer, form)
        await _check_files(files, form, owner)
        job = background_tasks.add_task(send_email, **form.model_dump(exclude_defaults=True))
        return await accept("Email will be sent in the background", [job], background_tasks, response)

    @uploads.post(
        "/attachments",
        name="upload_attachment",
        status_code=201,
        responses=problem_docs(400, 413, 415, 422, 503, 507),
        openapi_extra=_UPLOAD_DOCS,
    )
    async def upload_attachment_route(request: Request, owner: CurrentOwner) -> AttachmentUploaded:
        """Store an attachment for mails of the same owner that refer to its ``path``."""
        part = FilePart(request, max_bytes=MAX_ATTACHMENT_BYTES)
        try:
            got = await files.receive(part.chunks(), file_name=await part.open(), owner=owner)
        except UploadTooLargeError:
            raise too_large(MAX_ATTACHMENT_BYTES) from None
        except UploadSpaceError as error:
            raise HTTPException(507, str(error)) from None
        return AttachmentUploaded(path=got.path, file_name=got.file_name, size=got.size)

    router.include_router(uploads)
    return router


def _outcome(number: int, code: int) -> dict[str, Any]:
    """Return the outcome for one recipient by its number (to, cc, bcc, without repeats), never by its address."""
    outcome = "sent" if code < 300 else "later" if code < 500 else "refused"
    return {"recipient": number, "code": code, "outcome": outcome}


def _check_addresses(mailer: Mailer, form: EmailForm) -> None:
    """Refuse special-use domains and too many recipients."""
    given: tuple[tuple[str, Iterable[str]], ...] = (
        ("to_email", [form.to_email]), ("cc", form.cc), ("bcc", form.bcc), ("reply_to", filter(None, [form.reply_to])),
    )  # fmt: skip
    for name, addresses in given:
        for address in addresses:
            try:
                mailer.check_domain(address)
            except AddressError as error:
                raise refuse_input(("body", name), str(error), "email") from None
    if len({form.to_email, *form.cc, *form.bcc}) > MAX_RECIPIENTS:
        raise refuse_input(("body", "bcc"), f"a message has at most {MAX_RECIPIENTS} recipients", "too_long")


async def _check_files(files: Attachments, form: EmailForm, owner: str) -> None:
    try:
        await files.load(form.attachments, owner=owner)
    except AttachmentError as error:
        raise refuse_input(("body", "attachments"), str(error), "attachment") from None
