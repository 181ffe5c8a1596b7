"""``/asyncapi.json`` below a prefix of one's own, and streams that are as it says."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import Field
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.documents import Documents, follow, frames, references

from asyncbg import AsyncBG, EventModel, Progress, current_job
from asyncbg.core.engine_events import ENGINE_EVENTS
from asyncbg.engine.target import prepare_target
from asyncbg.settings import RunnerSettings, Settings
from asyncbg.testing import stream

HELD_S = 0.2


class OrderShipped(EventModel):
    """The parcel left the house."""

    event_type = "order.shipped"

    order: int = Field(description="the number of the order", examples=[7])


@pytest.fixture
def bg(tmp_path: Path) -> AsyncBG:
    """An engine with a class of events of its own; not started."""
    runner = RunnerSettings(cancel_grace_s=0, watchdog_s=HELD_S / 2)
    return AsyncBG(Settings(database_url=f"sqlite:///{tmp_path}/jobs.db", runner=runner), events=[OrderShipped])


@pytest.fixture
def app(bg: AsyncBG) -> FastAPI:
    """Somebody's application with the router under a prefix."""
    app = FastAPI(title="Shop", version="3.1", lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which is not started."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://shop") as client:
        yield client


async def document(client: httpx.AsyncClient, path: str = "/bg/asyncapi.json") -> dict[str, Any]:
    """What is served there."""
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    told = answer.json()
    assert isinstance(told, dict)
    return told


async def test_the_channels_have_the_paths_of_the_streams(client: httpx.AsyncClient) -> None:
    """With the prefix, and the application's own title and version."""
    told = await document(client)

    assert told["asyncapi"] == "3.0.0"
    assert (told["info"]["title"], told["info"]["version"]) == ("Shop: events", "3.1")
    assert [channel["address"] for channel in told["channels"].values()] == ["/bg/jobs/{job_id}/events", "/bg/events"]
    assert told["channels"]["jobEvents"]["parameters"].keys() == {"job_id"}


@pytest.mark.parametrize(("root_path", "address"), [("/shop", "/shop/bg/events"), ("/shop/", "/shop/bg/events")])
async def test_a_path_that_a_proxy_strips_is_part_of_the_address(app: FastAPI, root_path: str, address: str) -> None:
    """A client needs the path that it sees."""
    transport = httpx.ASGITransport(app=app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        assert (await document(client))["channels"]["events"]["address"] == address


async def test_it_is_served_in_a_mounted_application(app: FastAPI) -> None:
    """Where the mount's path is before the prefix, and the title is the mounted application's."""
    transport = httpx.ASGITransport(app=Starlette(routes=[Mount("/sub", app)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        told = await document(client, "/sub/bg/asyncapi.json")

    assert told["channels"]["events"]["address"] == "/sub/bg/events"
    assert told["info"]["title"] == "Shop: events"


async def test_both_channels_have_every_message(client: httpx.AsyncClient) -> None:
    """The engine's, the stream's own, those that were declared, and one for any other."""
    told = await document(client)
    names = [*(model.__name__ for model in ENGINE_EVENTS), "OrderShipped", "TaskEvent"]

    assert [list(channel["messages"]) for channel in told["channels"].values()] == [names, names]
    assert list(told["components"]["messages"]) == list(told["components"]["schemas"]) == names
    assert told["components"]["messages"]["OrderShipped"] | {"examples": [], "headers": {}} == {
        "name": "order.shipped",
        "title": "OrderShipped",
        "summary": "The parcel left the house.",
        "tags": [{"name": "task"}],
        "payload": {"$ref": "#/components/schemas/OrderShipped"},
        "examples": [],
        "headers": {},
    }


async def test_the_document_is_built_by_the_rules(client: httpx.AsyncClient) -> None:
    """AsyncAPI 3.0.0: what it requires is there, an operation names its channel, references lead on."""
    told = await document(client)

    assert told["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= told["info"].keys()
    for channel in told["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == channel.get("parameters", {}).keys()
    for operation in told["operations"].values():
        assert operation["action"] in {"send", "receive"}
        assert operation["channel"]["$ref"].startswith("#/channels/")
    for reference in set(references(told)):
        follow(told, reference)


async def test_an_operation_stands_for_the_route_and_its_query(client: httpx.AsyncClient) -> None:
    """The query parameters are those of OpenAPI, by name and description."""
    told = await document(client)
    paths = (await client.get("/openapi.json")).json()["paths"]

    for operation in told["operations"].values():
        address = follow(told, operation["channel"]["$ref"])["address"]
        parameters = paths[address]["get"]["parameters"]
        binding = operation["bindings"]["http"]
        assert (operation["action"], binding["method"]) == ("send", "GET")
        assert operation["summary"] == paths[address]["get"]["summary"]
        assert {name: shown["description"] for name, shown in binding["query"]["properties"].items()} == {
            parameter["name"]: parameter["description"] for parameter in parameters if parameter["in"] == "query"
        }


async def test_head_is_answered_without_a_body(client: httpx.AsyncClient) -> None:
    """As on every route that can be read."""
    answer = await client.head("/bg/asyncapi.json")

    assert (answer.status_code, answer.content) == (200, b"")


async def test_an_application_of_its_own_has_whole_schemas(bg: AsyncBG, client: httpx.AsyncClient) -> None:
    """FastAPI loses nothing of them; the library leaves the components of somebody's OpenAPI document alone."""
    told = (await client.get("/openapi.json")).json()
    [first, second] = [
        told["paths"][path]["get"]["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
        for path in ("/bg/events", "/bg/jobs/{job_id}/events")
    ]

    assert first == second == bg._event_schemas.frame()
    assert not list(references(first))
    assert "OrderShipped" not in told["components"]["schemas"]


async def test_what_is_sent_is_what_both_documents_say(bg: AsyncBG, client: httpx.AsyncClient, app: FastAPI) -> None:
    """Every type there is, from jobs that succeed, fail, wait, ignore a cancel and hold the loop, to the goodbye."""
    register_tasks(bg)
    told = Documents((await client.get("/openapi.json")).json(), await document(client))
    async with bg.lifespan(app), asyncio.timeout(30):
        ids = [(await bg.submit(name, {}, owner="ada")).id for name in ("ship", "fail", "stubborn", "greedy")]
        prepared = [
            prepare_target(bg._parts.enqueuer, nothing, (), {}),
            prepare_target(bg._parts.enqueuer, nothing, (), {}),
        ]
        await bg._parts.enqueuer.accept(prepared)
        late = await bg.task(name="late")(nothing).options(delay=3600).enqueue()
        await late.cancel()
        for job_id in [*ids, *(one.job.id for one in prepared), late.id]:
            await bg.wait(job_id, 20)
            told.check("jobEvents", frames((await client.get(f"/bg/jobs/{job_id}/events")).text))
        await bg.retry(ids[0])
        await bg.wait(ids[0], 20)
        told.check("events", frames((await client.get("/bg/events?follow=false")).text))
        async with stream(app, "/bg/events") as reader:
            start = await reader.next("stream.position")
        told.check("events", [{"event": start.event, "id": start.id, "data": start.data}])
        cursor = {"Last-Event-ID": "malformed"}
        told.check("events", frames((await client.get("/bg/events?follow=false", headers=cursor)).text))
        bg._streams.drain()
        told.check("events", frames((await client.get("/bg/events")).text))

    assert told.met == {*bg._event_schemas.vocabulary.names, "parcel.weighed"}


def register_tasks(bg: AsyncBG) -> None:
    """Tasks that end well, badly, late, and only after they have held up all others."""

    @bg.task(name="ship")
    async def ship(progress: Progress = Progress()) -> None:
        progress.set(1, total=2, message="half", unit="parcels")
        await current_job().publish(OrderShipped(order=7))
        await current_job().publish("parcel.weighed", {"kg": 1.5})

    @bg.task(name="fail", retries=1)
    async def fail() -> None:
        error = ConnectionError("nobody answers")
        error.retry_after_s = 0.01  # type: ignore[attr-defined]
        raise error

    @bg.task(name="stubborn", timeout=0.01)
    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)

    @bg.task(name="greedy")
    async def greedy() -> None:
        while "greedy" not in bg._parts.runner.blockages:
            time.sleep(HELD_S)  # noqa: ASYNC251 - the very thing
            await asyncio.sleep(0.01)


async def nothing() -> None:
    """Be done at once."""


@pytest.mark.parametrize("wrong", ["order.shipped", OrderShipped(order=1), dict])
def test_what_is_no_class_of_events_is_refused_at_once(tmp_path: Path, wrong: Any) -> None:
    """By the constructor, not by the first reader of the documents."""
    with pytest.raises(TypeError, match="is no event class"):
        AsyncBG(Settings(database_url=f"sqlite:///{tmp_path}/jobs.db"), events=[wrong])
