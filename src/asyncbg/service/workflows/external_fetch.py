"""Fetch and process JSON from a URL, then deliver a webhook."""

import random
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from asyncbg import AsyncBG, BackgroundTasks, EventModel, Personal, Progress, current_job
from asyncbg.service.inputs import Url, UserId, UserNumber, query_or_body
from asyncbg.service.integrations.delivery_schedule import DeliverySchedule
from asyncbg.service.integrations.egress import BadUrlError, EgressRefusedError
from asyncbg.service.integrations.fetched_items import summarize
from asyncbg.service.integrations.outbound import Outbound
from asyncbg.service.integrations.outbound_error import WebhookError
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.settings import OutboundSettings
from asyncbg.web.inputs import refuse_input
from asyncbg.web.problem_route import ProblemRoute
from asyncbg.web.schemas import Accepted


class FetchForm(BaseModel):
    """The URL of the data and the URL of the webhook."""

    data_url: Annotated[Url, Field(examples=["https://example.com/items.json"])]
    webhook_url: Annotated[Url, Field(examples=["https://example.com/hooks/fetched"])]


class WebhookAttempted(EventModel):
    """A delivery was attempted. All of these events of a job are its delivery log."""

    event_type = "webhook.attempted"

    status: int | None = Field(description="the response status; null without a response", examples=[503])
    duration_s: float = Field(ge=0, description="duration in seconds", examples=[0.042])
    error: str | None = Field(description="the class name of the error; null on success", examples=["WebhookError"])


class WebhookDelivered(EventModel):
    """The receiver answered with a 2xx."""

    event_type = "webhook.delivered"

    status: int = Field(ge=200, le=299, description="the response status", examples=[204])
    duration_s: float = Field(ge=0, description="duration in seconds", examples=[0.042])


def external_fetch_workflow(bg: AsyncBG, *, outbound: Outbound, settings: OutboundSettings) -> APIRouter:
    """Return ``POST /trigger-external-fetch/{user_id}``; register ``fetch_external_data`` and ``send_webhook``."""
    schedule, rng = DeliverySchedule(settings.webhook_schedule_s), random.Random()  # nosec B311  # noqa: S311 - jitter
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    @bg.task(name="fetch_external_data", retries=3, timeout=600)
    async def fetch_external_data(
        user_id: UserNumber,
        data_url: Annotated[Url, Personal("url")],
        progress: Progress = Progress(),
    ) -> dict[str, Any]:
        """Fetch a JSON document; validate, count and sum its items, and keep a sample of them."""
        progress.set(0, total=2, message="fetching")
        fetched = await outbound.fetch_json(data_url)
        progress.set(1, message=f"{fetched.bytes} bytes fetched")
        found = await anyio.to_thread.run_sync(summarize, fetched.value)
        progress.set(2, message=f"{found.items} items in {fetched.bytes} bytes, {found.rejected} rejected")
        summary = found.model_dump(exclude_none=True)
        summary["sample"] = current_job().clean_json(summary["sample"])  # foreign data may be personal
        return {"bytes": fetched.bytes, **summary}

    @bg.task(name="send_webhook", retries=schedule.retries, timeout=600)
    async def send_webhook(user_id: UserNumber, webhook_url: Annotated[Url, Personal("url")]) -> dict[str, int]:
        """POST a signed webhook; its id is the job id, so that receivers can detect repeats."""
        job, began_ms = current_job(), bg.clock.monotonic_ms()
        payload = {"user_id": user_id, "action": "external_fetch_triggered"}

        async def record_attempt(status: int | None, error: str | None = None) -> None:
            took_s = (bg.clock.monotonic_ms() - began_ms) / 1000
            await job.publish(WebhookAttempted(status=status, duration_s=took_s, error=error))

        await job.require_lease()
        try:
            delivered = await outbound.deliver_webhook(webhook_url, payload, message_id=job.id)
        except WebhookError as error:
            await record_attempt(error.status, type(error).__name__)
            error.retry_after_s = schedule.delay_s(job.attempt, rng, asked_s=error.retry_after_s)
            raise
        except EgressRefusedError as error:
            await record_attempt(None, type(error).__name__)
            raise
        await record_attempt(delivered.status)
        await job.publish(WebhookDelivered(status=delivered.status, duration_s=delivered.duration_s))
        return {"status": delivered.status}

    @router.post("/trigger-external-fetch/{user_id}", name="trigger_external_fetch", **accepts(FetchForm))
    async def trigger_external_fetch_route(
        user_id: UserId,
        form: Annotated[FetchForm, Depends(query_or_body(FetchForm))],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept a fetch. Invalid and forbidden URLs are refused now; resolved addresses are checked on connecting."""
        _check_urls(outbound, form)
        jobs = [
            background_tasks.add_task(fetch_external_data, user_id, form.data_url),
            background_tasks.add_task(send_webhook, user_id, form.webhook_url),
        ]
        return await accept("External fetch started in the background", jobs, background_tasks, response)

    return router


def _check_urls(outbound: Outbound, form: FetchForm) -> None:
    for name in type(form).model_fields:
        try:
            outbound.check_url(getattr(form, name))
        except (BadUrlError, EgressRefusedError) as error:
            raise refuse_input((name,), str(error), "url") from None
