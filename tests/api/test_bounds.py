"""Work is bounded per request: what a list reads, what a body is made of, what a job may bring along."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from asyncbg import AsyncBG, BackgroundTasks
from asyncbg.store.base import JobQuery
from asyncbg.web.schemas import MAX_LISTED_BYTES

PROBLEM = "application/problem+json"
MIB = 1024 * 1024


async def repeat(word: Any, times: int = 1) -> str:
    """Give back something as long as wished."""
    return str(word)[:1] * times


@pytest.fixture
def bg(tmp_path: Path) -> AsyncBG:
    """An engine with one task."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)
    bg.task(name="repeat")(repeat)
    return bg


@pytest.fixture
async def client(bg: AsyncBG) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with the router."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client


async def test_a_list_leaves_out_what_is_large_and_says_so(bg: AsyncBG, client: httpx.AsyncClient) -> None:
    """Its size stands in its place; the job itself has it, and what is small is shown as ever."""
    large = await bg.enqueue(repeat, "a" * 100_000, MIB - 2)
    small = await bg.enqueue(repeat, "b", 3)
    await asyncio.gather(large.result(5), small.result(5))

    page = await client.get("/jobs")
    shown_small, shown_large = page.json()["items"]
    itself = (await client.get(f"/jobs/{large.id}")).json()

    assert len(page.content) < 5_000
    assert (shown_large["args"], shown_large["result"]) == ({}, None)
    assert shown_large["omitted"] == {
        "args": len(json.dumps({"word": "a" * 100_000, "times": MIB - 2}, separators=(",", ":"))),
        "result": MIB,
    }
    assert (shown_small["args"], shown_small["result"]) == ({"word": "b", "times": 3}, "bbb")
    assert "omitted" not in shown_small
    assert "omitted" not in itself
    assert itself["result"] == "a" * (MIB - 2)
    assert itself["args"]["word"] == "a" * 100_000


async def test_a_list_reads_no_large_column(bg: AsyncBG, client: httpx.AsyncClient, tmp_path: Path) -> None:
    """Also of rows from before there was a bound: 20 MB stay in the database."""
    job = await bg.enqueue(repeat, "a")
    await job.result(5)
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
        connection.execute("UPDATE job SET result = ?", (f'"{"x" * 20 * MIB}"',))

    (record,) = await bg.backend.list(JobQuery(most_value_bytes=MAX_LISTED_BYTES))

    assert record.result is None
    assert record.omitted == {"result": 20 * MIB + 2}
    assert (await client.get("/jobs")).json()["items"][0]["omitted"] == {"result": 20 * MIB + 2}


HEAVY = {
    "lists in a list": "[" + "[]," * 300_000 + "0]",
    "lists in lists": "[" * 400_000 + "]" * 400_000,
    "objects": '{"a":[' + "{}," * 20_001 + "0]}",
    "numbers": "[" + "1," * 500_000 + "1]",
    "texts": "[" + '"",' * 250_000 + "1]",
}


@pytest.mark.parametrize("kind", HEAVY)
async def test_a_body_of_too_many_parts_is_refused_before_it_is_read(client: httpx.AsyncClient, kind: str) -> None:
    """A mebibyte of brackets would be 300,000 objects in memory, and hold the event loop meanwhile."""
    body = f'{{"task":"repeat","args":{{"word":{HEAVY[kind]}}}}}'
    answer = await client.post("/jobs", content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
    assert "objects and lists" in answer.json()["detail"]


@pytest.mark.parametrize("word", ["x,y,[]{}" * 60_000, '\\",[{"' * 50_000, "\\\\" * 200_000])
async def test_brackets_in_a_text_are_no_parts(client: httpx.AsyncClient, word: str) -> None:
    """Only what is outside the quotes counts."""
    answer = await client.post("/jobs", json={"task": "repeat", "args": {"word": word}})

    assert answer.status_code == 202


async def test_arguments_beyond_the_bound_are_refused_over_http(tmp_path: Path) -> None:
    """Of a submission with 422, of a route that adds a task with 413; nothing is stored."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path, jobs={"max_args_bytes": 10_000})
    bg.task(name="repeat")(repeat)
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)

    @app.post("/add")
    async def add(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(repeat, "x" * 10_000)

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            submitted = await client.post("/jobs", json={"task": "repeat", "args": {"word": "x" * 10_000}})
            added = await client.post("/add")
            page = await client.get("/jobs")

    assert (submitted.status_code, submitted.headers["content-type"]) == (422, PROBLEM)
    assert "ASYNCBG_JOBS__MAX_ARGS_BYTES" in submitted.text
    assert (added.status_code, "ASYNCBG_JOBS__MAX_ARGS_BYTES" in added.text) == (413, True)
    assert page.json()["items"] == []


async def test_a_larger_bound_lets_larger_submissions_in(tmp_path: Path) -> None:
    """The route's own bound grows with the setting."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path, jobs={"max_args_bytes": 3 * MIB})
    bg.task(name="repeat")(repeat)
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            fits = await client.post("/jobs", json={"task": "repeat", "args": {"word": "x" * 2 * MIB}})
            does_not = await client.post("/jobs", json={"task": "repeat", "args": {"word": "x" * 4 * MIB}})

    assert (fits.status_code, does_not.status_code) == (202, 413)
