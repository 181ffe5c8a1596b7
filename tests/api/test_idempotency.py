"""The same request sent twice is one job: over HTTP with ``Idempotency-Key``, in Python with ``key=``."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.faults.serving import serving

from asyncbg import AsyncBG, BackgroundTasks
from asyncbg.settings import load_settings

BODY = {"task": "charge", "args": {"order": "o-1"}}
ran: list[str] = []


async def charge(order: str) -> str:
    """A job that must not run twice for one request."""
    ran.append(order)
    return order


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    ran.clear()
    return tmp_path / "jobs.db"


@pytest.fixture
def bg(path: Path) -> AsyncBG:
    """An engine with two tasks, one of them unique by its order."""
    bg = AsyncBG(load_settings(database_url=f"sqlite:///{path}", runner={"shutdown_grace_s": 0}))
    bg.task(name="charge")(charge)
    bg.task(name="charge_once", key="order-{order}")(charge)
    return bg


@pytest.fixture
async def http(bg: AsyncBG) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)

    @app.post("/orders/{order}")
    async def place(order: str, background_tasks: BackgroundTasks, twice: bool = False) -> dict[str, Any]:
        jobs = [
            background_tasks.add_task(bg.task(charge).options(idempotency_key=f"k-{order}"), order)
            for _ in range(2 if twice else 1)
        ]
        await background_tasks.commit()
        return {"jobs": [job.id for job in jobs], "created": [job.created for job in jobs]}

    async with serving(app) as client:
        yield client


def stored(path: Path, columns: str = "id, state") -> list[tuple[Any, ...]]:
    """The jobs on disk."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {columns} FROM job ORDER BY n").fetchall()  # noqa: S608 - our own words


async def post(http: httpx.AsyncClient, key: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """Submit a body under a key."""
    return await http.post("/jobs", json=BODY if body is None else body, headers={"Idempotency-Key": key})


def job_of(answer: httpx.Response) -> str:
    """The one job of an answer."""
    assert answer.status_code == 202, answer.text
    (job,) = answer.json()["jobs"]
    return str(job["id"])


async def test_a_full_queue_still_knows_what_it_accepted(path: Path) -> None:
    """A repeat takes no room: it gets the job of the first request, while everything new is refused."""
    bg = AsyncBG(load_settings(database_url=f"sqlite:///{path}", runner={"shutdown_grace_s": 0, "max_queued": 1}))
    bg.task(name="charge")(charge)
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    async with serving(app) as http:
        await http.get("/health/live")
        bg._parts.runner.begin_drain()
        first = await http.post("/jobs", json=BODY, headers={"Idempotency-Key": "k-1"})
        again = await http.post("/jobs", json=BODY, headers={"Idempotency-Key": "k-1"})
        other = await http.post(
            "/jobs", json={"task": "charge", "args": {"order": "2"}}, headers={"Idempotency-Key": "k-1"}
        )
        fresh = await http.post("/jobs", json=BODY, headers={"Idempotency-Key": "k-2"})

    assert (first.status_code, again.status_code, other.status_code, fresh.status_code) == (202, 202, 422, 503)
    assert first.json()["jobs"][0]["id"] == again.json()["jobs"][0]["id"]


async def test_fifty_posts_at_once_under_one_key_are_one_job(http: httpx.AsyncClient, path: Path) -> None:
    """All are answered with the same job, which runs once."""
    answers = await asyncio.gather(*(post(http, "k") for _ in range(50)))
    ids = {job_of(answer) for answer in answers}
    await http.get(f"/jobs/{next(iter(ids))}", params={"wait": 10})

    assert len(ids) == 1
    assert stored(path) == [(ids.pop(), "succeeded")]
    assert ran == ["o-1"]


async def test_fifty_posts_under_one_key_with_two_bodies_run_one_of_them(http: httpx.AsyncClient, path: Path) -> None:
    """Whichever came first is the job; every other body is refused with 422."""
    other = {"task": "charge", "args": {"order": "o-2"}}
    answers = await asyncio.gather(*(post(http, "k", other if n % 2 else BODY) for n in range(50)))
    kinds = {answer.json().get("type") for answer in answers if answer.status_code == 422}

    assert sorted(answer.status_code for answer in answers) == [202] * 25 + [422] * 25
    assert kinds == {"urn:problem-type:asyncbg:idempotency-key-reused"}
    assert len(stored(path)) == 1


async def test_a_key_is_remembered_after_the_job_is_over_and_over_a_restart(
    http: httpx.AsyncClient, path: Path
) -> None:
    """For as long as the job is kept its key gives it back."""
    first = job_of(await post(http, "k"))
    await http.get(f"/jobs/{first}", params={"wait": 10})
    reborn = AsyncBG(load_settings(database_url=f"sqlite:///{path}"))
    reborn.task(name="charge")(charge)
    app = FastAPI(lifespan=reborn.lifespan)
    app.include_router(reborn.router)
    async with serving(app) as elsewhere:
        again = job_of(await post(elsewhere, "k"))
        refused = await post(elsewhere, "k", {**BODY, "priority": 3})

    assert first == again
    assert refused.status_code == 422
    assert len(stored(path)) == 1


async def test_another_key_is_another_job(http: httpx.AsyncClient, path: Path) -> None:
    """The same body under two keys, and without one, is three jobs."""
    ids = {job_of(await post(http, key)) for key in ("a", "b")} | {job_of(await http.post("/jobs", json=BODY))}

    assert len(ids) == len(stored(path)) == 3


async def test_a_key_is_of_printable_ascii(http: httpx.AsyncClient, path: Path) -> None:
    """Anything else is refused before anything is stored."""
    answers = [await post(http, key) for key in ("", "k" * 256)]

    assert [answer.status_code for answer in answers] == [422, 422]
    assert stored(path) == []


async def test_a_task_s_key_allows_one_open_job(http: httpx.AsyncClient, bg: AsyncBG, path: Path) -> None:
    """Fifty at once are one job while it is not final; afterwards the same key is a new job."""
    body = {"task": "charge_once", "args": {"order": "o-1"}, "delay_s": 60}
    ids = {job_of(answer) for answer in await asyncio.gather(*(http.post("/jobs", json=body) for _ in range(50)))}
    await bg.cancel(next(iter(ids)))
    later = job_of(await http.post("/jobs", json=body))

    assert len(ids) == 1
    assert later not in ids
    assert [state for _, state in stored(path)] == ["cancelled", "scheduled"]


async def test_a_task_s_key_differs_by_its_arguments(http: httpx.AsyncClient, path: Path) -> None:
    """Another order is another job."""
    bodies = [{"task": "charge_once", "args": {"order": f"o-{n}"}, "delay_s": 60} for n in range(3)]
    ids = {job_of(await http.post("/jobs", json=body)) for body in bodies}

    assert len(ids) == 3
    assert stored(path, "unique_key") == [("order-o-0",), ("order-o-1",), ("order-o-2",)]


async def test_the_key_and_its_job_are_one_row(http: httpx.AsyncClient, path: Path) -> None:
    """There is no key without its job and no job without its key, whenever the process dies."""
    job_id = job_of(await post(http, "k"))

    assert stored(path, "id, idempotency_key") == [(job_id, "k")]


async def test_a_repeated_form_gives_the_earlier_job(http: httpx.AsyncClient, path: Path) -> None:
    """With the drop-in too: fifty requests at once, one job."""
    answers = await asyncio.gather(*(http.post("/orders/7") for _ in range(50)))

    assert len({answer.json()["jobs"][0] for answer in answers}) == 1
    assert [answer.json()["created"] for answer in answers].count([True]) == 1
    assert len(stored(path)) == 1


async def test_one_key_twice_in_a_request_is_one_job(http: httpx.AsyncClient, path: Path) -> None:
    """Both handles are the same job."""
    answer = (await http.post("/orders/7", params={"twice": True})).json()

    assert answer["jobs"][0] == answer["jobs"][1]
    assert answer["created"] == [True, False]
    assert len(stored(path)) == 1
