"""In an application of your own: its dependency says who calls, and the library's routes obey."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import fastapi
import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException

from asyncbg import AsyncBG, BackgroundTasks
from asyncbg.auth.caller import Caller
from asyncbg.web.engine_router import EngineRouter

USERS: dict[str, Any] = {"ada": "ada", "bob": "bob", "root": Caller(owner="root", scopes=frozenset({"admin"}))}  # type: ignore[arg-type]  # as an application would write it


@dataclass
class Staff:
    """What an application's own dependency may return."""

    owner: str
    scopes: list[str]


async def current_user(x_user: Annotated[str | None, Header()] = None) -> Any:
    """Whoever the header names."""
    if x_user is None:
        raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Shop"})
    return USERS.get(x_user, Staff("reader", ["read", "unknown"]) if x_user == "reader" else None)


@asynccontextmanager
async def shop(directory: Path, **auth: Any) -> AsyncIterator[tuple[AsyncBG, FastAPI]]:
    """An application with a route of its own and the library's routes under /bg."""
    bg = AsyncBG(database_url=f"sqlite:///{directory}/jobs.db", data_dir=directory, runner={"shutdown_grace_s": 0})
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router(**auth) if auth else bg.router, prefix="/bg")

    @bg.task(name="greet")
    async def greet(name: str = "x") -> str:
        return f"hello {name}"

    @bg.task(name="once", key="{name}")
    async def once(name: str) -> None: ...

    @app.post("/greet")
    async def greet_route(background_tasks: BackgroundTasks, owner: str | None = None) -> dict[str, str]:
        if owner is not None:
            background_tasks.owner = owner
        return {"job": background_tasks.add_task(greet, "y").id}

    async with app.router.lifespan_context(app):
        yield bg, app


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[FastAPI]:
    """The library's routes behind the application's dependency."""
    async with shop(tmp_path, auth=current_user) as (_, app):
        yield app


@asynccontextmanager
async def user(app: FastAPI, name: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client who says so."""
    headers = {"X-User": name} if name else {}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers=headers) as client:
        yield client


async def test_every_route_asks_the_applications_dependency(guarded: FastAPI) -> None:
    """Its own refusal comes out, and health is no exception; the application's own routes are its own matter."""
    async with user(guarded, None) as client, user(guarded, "stranger") as stranger:
        paths = (await client.get("/openapi.json")).json()["paths"]
        walked = [(method, path) for path, item in paths.items() for method in item if path.startswith("/bg")]
        assert len(walked) > 8
        for method, path in [*walked, ("get", "/bg/")]:
            for one in (client, stranger):
                body = {"task": "greet", "path": "/events"} if method == "post" else None
                answer = await one.request(method.upper(), path.replace("{", "").replace("}", ""), json=body)
                assert answer.status_code == 401, (method, path)
        assert (await client.get("/bg/jobs")).headers["www-authenticate"] == "Shop"
        assert (await client.post("/greet")).status_code == 200


async def test_an_owner_sees_what_is_its_own(guarded: FastAPI) -> None:
    """A plain name may submit and read; others' jobs are not there."""
    async with user(guarded, "ada") as ada, user(guarded, "bob") as bob, user(guarded, "root") as root:
        job = (await ada.post("/bg/jobs", json={"task": "greet"})).json()["jobs"][0]["id"]

        assert (await ada.get(f"/bg/jobs/{job}?wait=20")).json()["owner"] == "ada"
        for path in (f"/bg/jobs/{job}", f"/bg/jobs/{job}/events"):
            assert (await bob.get(path)).status_code == 404
            assert (await root.get(path)).status_code == 200
        assert (await bob.get("/bg/jobs?owner=ada")).json()["items"] == []
        assert (await bob.get("/bg/events?follow=false")).text.count("event:") == 0
        assert (await root.get("/bg/jobs")).json()["items"][0]["id"] == job


async def test_an_object_names_its_scopes(guarded: FastAPI) -> None:
    """Anything with ``owner`` and ``scopes``; words we do not know give nothing."""
    async with user(guarded, "reader") as reader:
        assert (await reader.get("/bg/jobs")).status_code == 200
        refused = await reader.post("/bg/jobs", json={"task": "greet"})

    assert (refused.status_code, refused.json()["scope"]) == (403, "submit")


async def test_a_ticket_opens_a_stream_that_the_dependency_would_refuse(guarded: FastAPI) -> None:
    """A browser's EventSource sets no header; the ticket says whose it is, once, and opens nothing else."""
    async with user(guarded, "ada") as ada, user(guarded, None) as browser:
        job = (await ada.post("/bg/jobs", json={"task": "greet"})).json()["jobs"][0]["id"]
        url = (await ada.post("/bg/stream-tickets", json={"path": f"/jobs/{job}/events"})).json()["url"]
        token = url.partition("ticket=")[2]

        for path in (f"/bg/jobs/{job}", "/bg/jobs", "/bg/events", "/bg/metrics", "/bg/"):
            assert (await browser.get(f"{path}?ticket={token}")).status_code == 401, path
        for wrong in ("ticket", "ticket=", "ticket=x", f"Ticket={token}"):
            assert (await browser.get(f"/bg/jobs/{job}/events?{wrong}")).status_code == 401, wrong
        assert (await browser.get(url)).status_code == 200
        assert (await browser.get(url)).status_code == 401


async def test_a_batch_belongs_to_whom_the_route_names(guarded: FastAPI) -> None:
    """``background_tasks.owner``; ``anonymous`` otherwise, which is nobody's name here."""
    async with user(guarded, "ada") as ada:
        hers = (await ada.post("/greet?owner=ada")).json()["job"]
        nobodys = (await ada.post("/greet")).json()["job"]

        assert (await ada.get(f"/bg/jobs/{hers}")).json()["owner"] == "ada"
        assert (await ada.get(f"/bg/jobs/{nobodys}")).status_code == 404


async def test_the_answer_to_a_taken_key_names_no_job_of_another_owner(guarded: FastAPI) -> None:
    """``@bg.task(key=…)`` allows one open job for each value and owner: a foreign id is in no answer."""
    later = {"task": "once", "args": {"name": "nightly"}, "delay_s": 3600}
    async with user(guarded, "ada") as ada, user(guarded, "bob") as bob:
        hers, again = [(await ada.post("/bg/jobs", json=later)).json()["jobs"][0]["id"] for _ in range(2)]
        answer = await bob.post("/bg/jobs", json=later)

        assert again == hers
        assert answer.status_code == 202
        assert hers not in answer.text + str(answer.headers)


async def test_the_router_as_it_is_asks_nobody_on_this_machine(tmp_path: Path) -> None:
    """It stays an APIRouter, included as ever, and Starlette's own call of it still serves."""
    async with shop(tmp_path) as (bg, app), user(app, None) as client:
        assert isinstance(bg.router, fastapi.APIRouter)
        assert isinstance(bg.router, EngineRouter)
        assert bg.router is bg.router
        assert (await client.get("/bg/jobs")).status_code == 200
        app.mount("/mounted", bg.router)
        assert (await client.get("/mounted/health/live")).status_code == 200
        assert (await client.post("/bg/stream-tickets", json={"path": "/events"})).status_code == 201


async def test_two_dependencies_may_guard_one_engine(tmp_path: Path) -> None:
    """One for users, one for those who run it."""
    async with shop(tmp_path, auth=current_user) as (bg, app), user(app, None) as client:
        app.include_router(bg.router(auth=lambda: Staff("operator", ["admin"])), prefix="/admin")
        await bg.submit("greet", {}, owner="ada")

        assert (await client.get("/bg/jobs")).status_code == 401
        assert [job["owner"] for job in (await client.get("/admin/jobs")).json()["items"]] == ["ada"]


async def test_a_dependency_may_have_its_own(tmp_path: Path) -> None:
    """With ``yield``, with other dependencies, of either scope: FastAPI resolves it."""
    closed: list[str] = []

    async def session() -> AsyncIterator[str]:
        yield "ada"
        closed.append("session")

    async def named(known: Annotated[str, Depends(session)]) -> str:
        return known

    async with AsyncExitStack() as stack:
        _, app = await stack.enter_async_context(shop(tmp_path, auth=named))
        client = await stack.enter_async_context(user(app, None))
        async with asyncio.timeout(20):
            assert (await client.get("/bg/jobs")).status_code == 200
    assert closed == ["session"]
