"""What the service sends on its streams is what /openapi.json and /asyncapi.json say, for every type of event."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from asyncbg.core.engine_events import ENGINE_EVENTS, LoopBlocked, StreamBye
from asyncbg.fastapi import AsyncBG
from asyncbg.service.server import create_app
from asyncbg.settings import Settings
from asyncbg.testing import SmtpSink, WebPeer
from tests.documents import Documents, follow, frames, references
from tests.workflows.conftest import Service, at_the_door, with_mail

PEOPLE = b"name,city\nAda canary7f3a,London\nGrace,New York,too much\n"
OF_WORKFLOWS = {"email.sent", "csv.imported", "csv.failed", "webhook.attempted", "webhook.delivered"}
OF_JOBS = {model.event_type for model in ENGINE_EVENTS} - {LoopBlocked.event_type, StreamBye.event_type}


async def documents(service: Service) -> Documents:
    """Both, as they are served."""
    return Documents(*[(await service.http.get(path)).json() for path in ("/openapi.json", "/asyncapi.json")])


async def stream(service: Service, path: str, **headers: str) -> list[dict[str, Any]]:
    """All frames of a stream that ends by itself."""
    async with asyncio.timeout(20):
        return frames((await service.http.get(path, headers=headers)).text)


async def run_every_workflow(service: Service, bg_web: WebPeer) -> list[str]:
    """One of each, with success, failure and retry among them; gives the ids of their jobs, all final."""
    bg_web.answers["/data"] = [1, 2, 3]
    bg_web.answers["/hook"] = "ok"
    urls = {"data_url": f"{bg_web.url}/data", "webhook_url": f"{bg_web.url}/hook"}
    requests: Iterable[tuple[str, dict[str, Any]]] = (
        ("/send-notification/ada.canary7f3a@canary7f3a.example", {}),
        ("/process/report", {}),
        (
            "/send-email/",
            {
                "json": {
                    "to_email": "ada.canary7f3a@canary7f3a.example",
                    "subject": "Hello canary7f3a",
                    "body": "Good to see you, canary7f3a.",
                }
            },
        ),
        ("/upload-csv/7", {"files": {"file": ("people.csv", PEOPLE)}}),
        ("/upload-csv/7", {"files": {"file": ("people.csv", b"\x00\x01\x02")}}),
        ("/user/7/action", {"params": {"action": "login canary7f3a"}}),
        ("/trigger-external-fetch/7", {"json": urls}),
        ("/safe-task/7", {"params": {"message": "hello canary7f3a"}}),
        ("/start-task/report-1", {"params": {"items_count": 20}}),
        ("/action/7", {"params": {"action": "login canary7f3a"}}),
    )
    jobs = [job for path, options in requests for job in await service.post(path, **options)]
    return [job["id"] for job in jobs]


@pytest.mark.timeout(60)
async def test_every_frame_is_as_both_documents_say(
    settings: Settings, serve: Callable[[Settings], Awaitable[Service]], bg_smtp: SmtpSink, bg_web: WebPeer
) -> None:
    """Every workflow, a delay, a cancel, cursors from elsewhere: both documents describe each frame, and all of it."""
    bg_smtp.replies.append("451 come back")
    service = await serve(with_mail(settings, bg_smtp))
    told = await documents(service)
    late = (await service.http.post("/jobs", json={"task": "cleanup", "args": {"user_id": 7}, "delay_s": 3600})).json()
    await service.http.post(f"/jobs/{late['jobs'][0]['id']}/cancel", json={"reason": "no longer wanted"})

    ids = await run_every_workflow(service, bg_web)

    for job_id in ids:
        told.check("jobEvents", await stream(service, f"/jobs/{job_id}/events"))
    told.check("jobEvents", await stream(service, f"/jobs/{ids[0]}/events", **{"Last-Event-ID": "of another life"}))
    told.check("events", await stream(service, "/events?follow=false"))
    told.check("events", await stream(service, "/events?follow=false", **{"Last-Event-ID": "elsewhere-1"}))
    assert told.met >= OF_WORKFLOWS | OF_JOBS - {"job.cancel_ignored", "stream.position"}


@at_the_door
async def test_every_reference_leads_somewhere(door: Service) -> None:
    """In both documents, and no two schemas have one name."""
    told = await documents(door)

    for document in (told.openapi, told.asyncapi):
        found = set(references(document))
        assert found
        for reference in found:
            follow(document, reference)


@at_the_door
async def test_the_service_describes_each_event_once(door: Service) -> None:
    """The schemas of events stand below components, whole; both streams refer to them."""
    told = await documents(door)
    paths = told.openapi["paths"]
    items = [
        paths[path]["get"]["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
        for path in ("/events", "/jobs/{job_id}/events")
    ]

    shared = {reference.rpartition("/")[2] for reference in references(items)}
    assert items[0] == items[1]
    assert shared == set(told.asyncapi["components"]["schemas"])
    assert shared >= {"JobQueued", "StreamReset", "EmailSent", "TaskEvent"}
    assert not list(references([told.openapi["components"]["schemas"][name] for name in shared]))


@at_the_door
async def test_the_other_answers_of_the_streams_stay_described(door: Service) -> None:
    """The end of a job's stream and the problems stand beside the frames."""
    paths = (await documents(door)).openapi["paths"]

    assert paths["/events"]["get"]["responses"].keys() == {"200", "401", "403", "422", "503"}
    assert paths["/jobs/{job_id}/events"]["get"]["responses"].keys() == {
        "200",
        "204",
        "401",
        "403",
        "404",
        "422",
        "503",
    }


async def test_a_service_tells_the_events_of_its_workflows(settings: Settings) -> None:
    """All classes that the workflows declare stand in the documents; the library alone knows none of them."""
    alone = AsyncBG(settings)._event_schemas

    document = create_app(settings).openapi()

    branches = document["paths"]["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
    told = {branch["title"] for branch in branches["oneOf"]}
    assert told - {"any other"} == {*alone.vocabulary.names} | OF_WORKFLOWS
    assert not OF_WORKFLOWS & {*alone.vocabulary.names}
