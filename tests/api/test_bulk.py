"""Cancelling all jobs that a search finds, over HTTP and on the command line."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from asyncbg.cli import run
from asyncbg.core.job import JobState
from asyncbg.engine import Engine
from asyncbg.engine.target import prepare_target
from asyncbg.settings import Settings
from asyncbg.store.search import SearchError, parse_search, unfinished
from asyncbg.web.jobs import jobs_router
from asyncbg.web.problems import install_problems


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine that accepts jobs of two tasks and runs none."""
    engine = Engine(Settings(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path))

    @engine.task(name="mail", queue="slow")
    async def mail() -> None: ...

    @engine.task(name="greet")
    async def greet() -> None: ...

    async with engine:
        engine._parts.runner.stop_claiming()
        yield engine


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes of jobs."""
    app = FastAPI()
    install_problems(app)
    app.include_router(jobs_router(engine))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://service") as client:
        yield client


async def bulk(client: httpx.AsyncClient, q: str, **more: Any) -> httpx.Response:
    """Cancel what a search finds."""
    return await client.post("/jobs/bulk", json={"action": "cancel", "q": q, **more})


@pytest.mark.parametrize(
    ("q", "cancelled"),
    [
        ("task:mail", ["mail", "mail"]),
        ("task:mail state:queued", ["mail"]),
        ("state:queued,scheduled", ["greet", "mail", "mail"]),
        ("queue:slow state:scheduled", ["mail"]),
        ('tag:"two words"', ["greet"]),
        ("owner:ada", ["greet"]),
        ("owner:nobody", []),
    ],
)
async def test_what_a_search_finds_is_cancelled(
    engine: Engine, client: httpx.AsyncClient, q: str, cancelled: list[str]
) -> None:
    """A dry run counts the same jobs and changes none."""
    await engine.submit("mail", {})
    await engine.submit("mail", {}, delay_s=3600)
    await engine.submit("greet", {}, tags=["two words"], owner="ada")

    tried = await bulk(client, q, dry_run=True)
    assert not (await client.get("/jobs", params={"state": "cancelled"})).json()["items"]
    done = await bulk(client, q)

    found = (await client.get("/jobs", params={"state": "cancelled"})).json()["items"]
    assert sorted(item["task"] for item in found) == cancelled
    assert tried.json() == done.json() == {"matched": len(cancelled), "more": False}


async def test_a_batch_is_cancelled_as_a_whole(engine: Engine, client: httpx.AsyncClient) -> None:
    """None of its jobs is released by the end of another."""
    prepared = [
        prepare_target(engine._parts.enqueuer, engine._parts.registry.get("greet").function, (), {}) for _ in range(3)
    ]
    await engine._parts.enqueuer.accept(prepared)

    assert (await bulk(client, f"batch:{prepared[0].job.id}")).json()["matched"] == 3
    assert {(await engine.get(one.job.id)).state for one in prepared} == {JobState.CANCELLED}


@pytest.mark.parametrize(
    ("q", "reason"),
    [
        ("", "at least one term"), ("mail", "terms such as task:NAME"), ("colour:red", "terms are task, state"),
        ("task:", "terms such as"), ("task:a task:b", "task is there twice"), ("state:odd", "name states of"),
        ("state:failed", "cannot be cancelled"), ('tag:"a', "close every quote"),
    ],
)  # fmt: skip
async def test_a_search_that_is_not_understood_is_refused(client: httpx.AsyncClient, q: str, reason: str) -> None:
    """422 with what is the matter; nothing is cancelled by mistake."""
    answer = await bulk(client, q)

    assert answer.status_code == 422
    assert reason in answer.json()["errors"][0]["msg"]
    with pytest.raises(SearchError, match=reason):
        unfinished(q)


def test_a_search_is_a_query() -> None:
    """Each term is a field of it."""
    query = parse_search("task:a queue:b tag:c owner:d batch:e state:queued,running")

    assert (query.task, query.queue, query.tag, query.owner, query.batch) == ("a", "b", "c", "d", "e")
    assert query.states == {JobState.QUEUED, JobState.RUNNING}


async def test_the_command_cancels_what_a_search_finds(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --yes, since nobody can be asked here; --dry-run only counts."""
    import anyio.to_thread

    await engine.submit("mail", {})
    await engine.submit("greet", {})
    monkeypatch.setenv("ASYNCBG_DATABASE_URL", f"sqlite:///{tmp_path}/jobs.db")

    async def command(*arguments: str) -> int:
        return await anyio.to_thread.run_sync(run, ["jobs", "cancel", *arguments])

    assert await command() == 2
    assert await command("--match", "task:mail") == 2
    assert await command("--match", "colour:red", "--yes") == 2
    capsys.readouterr()
    assert await command("--match", "task:mail", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"matched": 1, "dry_run": True}
    assert await command("--match", "task:mail", "--yes") == 0
    assert "1 jobs were cancelled" in capsys.readouterr().out
    assert (await engine.backend.counts())[JobState.QUEUED] == 1
