"""Too much at once: what goes beyond a bound is refused at once, and what was accepted is kept."""

import asyncio
import sqlite3
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from asyncbg import AsyncBG
from asyncbg.errors import OverloadedError, QuotaError
from asyncbg.settings import load_settings
from tests.faults.serving import serving

REFUSED_WITHIN_S = 0.010


async def nothing() -> None:
    """A job that is over at once."""


def engine_at(path: Path, **runner: object) -> AsyncBG:
    """An engine on a database file, with bounds of its own."""
    bg = AsyncBG(load_settings(database_url=f"sqlite:///{path}", runner={"shutdown_grace_s": 0, **runner}))
    bg.task(nothing)
    return bg


@asynccontextmanager
async def paused(bg: AsyncBG) -> AsyncIterator[httpx.AsyncClient]:
    """A server that accepts jobs and runs none."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    async with serving(app) as http:
        await http.get("/health/live")
        bg._parts.runner.begin_drain()
        yield http


def stored(path: Path) -> int:
    """How many jobs are on disk."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM job").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "jobs.db"


async def test_beyond_the_bound_jobs_are_refused_and_not_stored(path: Path) -> None:
    """Of fifty posts at once as many are accepted as there is room for; the others are told when to come back."""
    async with paused(engine_at(path, max_queued=5)) as http:
        answers = await asyncio.gather(*(http.post("/jobs", json={"task": "nothing"}) for _ in range(50)))

    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(answers) - len(refused) == stored(path) == 5
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["type"].endswith(":overloaded")


async def test_jobs_of_a_removed_task_take_no_room(path: Path) -> None:
    """They are shown with the reason, counted by their task, and refuse nobody else's job."""
    old = engine_at(path)
    old.task(name="gone")(nothing)
    async with old:
        old._parts.runner.stop_claiming()
        for _ in range(3):
            await old.submit("gone", {})

    async with paused(engine_at(path, max_queued=1)) as http:
        accepted = await http.post("/jobs", json={"task": "nothing"})
        refused = await http.post("/jobs", json={"task": "nothing"})
        shown = (await http.get("/jobs", params={"state": "queued", "task": "gone"})).json()["items"]
        metrics = (await http.get("/metrics")).text

    assert (accepted.status_code, refused.status_code) == (202, 503)
    assert [item["hint"].split(":")[0] for item in shown] == ["this process has no task gone"] * 3
    assert 'asyncbg_jobs_unknown_task{task="gone"} 3.0' in metrics


async def test_a_refusal_takes_less_than_ten_milliseconds(path: Path) -> None:
    """Over HTTP, from the request to the answer; the tenth best of a hundred, as the machine may be busy."""
    took = []
    async with paused(engine_at(path, max_queued=1)) as http:
        await http.post("/jobs", json={"task": "nothing"})
        for _ in range(100):
            began = time.perf_counter()
            answer = await http.post("/jobs", json={"task": "nothing"})
            took.append(time.perf_counter() - began)
            assert answer.status_code == 503

    assert sorted(took)[10] < REFUSED_WITHIN_S


async def test_refusals_keep_nothing_in_memory(path: Path) -> None:
    """After five thousand refusals the process holds what it held before."""
    bg = engine_at(path, max_queued=1)
    async with bg:
        bg._parts.runner.begin_drain()
        await bg.enqueue(nothing)
        tracemalloc.start()
        try:
            await refuse(bg, 500)
            before = tracemalloc.get_traced_memory()[0]
            await refuse(bg, 5_000)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()

    assert grown < 100_000
    assert stored(path) == 1


async def refuse(bg: AsyncBG, times: int) -> None:
    """Try so often, in vain."""
    for _ in range(times):
        try:
            await bg.enqueue(nothing)
        except OverloadedError:
            continue
        raise AssertionError("it was accepted")


async def test_room_comes_back_as_soon_as_jobs_begin(path: Path) -> None:
    """A small bound never refuses one quick job after another: nothing waits for a count that comes later."""
    async with engine_at(path, max_queued=2) as bg:
        for _ in range(50):
            await (await bg.enqueue(nothing)).result(10)

    assert stored(path) == 50


async def test_what_an_earlier_life_left_counts(path: Path) -> None:
    """The bound holds from the first request after a restart."""
    async with engine_at(path, max_queued=2) as bg:
        bg._parts.runner.begin_drain()
        for _ in range(2):
            await bg.submit("nothing", {}, delay_s=60)
    async with engine_at(path, max_queued=2, concurrency=1) as later:
        with pytest.raises(OverloadedError):
            await later.enqueue(nothing)


async def test_a_key_that_matched_takes_no_room(path: Path) -> None:
    """A repeated request is the earlier job, however often it is sent."""
    bg = engine_at(path, max_queued=2)
    async with bg:
        bg._parts.runner.begin_drain()
        jobs = [await bg.submit("nothing", {}, idempotency_key="k", fingerprint="f") for _ in range(20)]
        await bg.enqueue(nothing)

    assert len({job.id for job in jobs}) == 1
    assert stored(path) == 2


async def test_one_owner_cannot_take_all_the_room(path: Path) -> None:
    """Beyond its own bound an owner is refused, and the others are not."""
    bg = engine_at(path, max_queued_per_owner=3)
    async with bg:
        bg._parts.runner.begin_drain()
        for _ in range(3):
            await bg.submit("nothing", {}, owner="ada")
        with pytest.raises(QuotaError) as caught:
            await bg.submit("nothing", {}, owner="ada")
        await bg.submit("nothing", {}, owner="bob")

    assert caught.value.retry_after_s > 0
    assert stored(path) == 4


async def test_an_owner_beyond_its_bound_gets_429(path: Path) -> None:
    """Over HTTP it is told apart from a server that is full."""
    async with paused(engine_at(path, max_queued_per_owner=1)) as http:
        first, second = [await http.post("/jobs", json={"task": "nothing"}) for _ in range(2)]

    assert (first.status_code, second.status_code) == (202, 429)
    assert int(second.headers["retry-after"]) >= 1
    assert second.json()["type"].endswith(":quota")


async def test_a_writer_that_hangs_gathers_no_endless_queue(path: Path) -> None:
    """While another process holds the database, ten thousand requests wait; more are refused at once."""
    bg = engine_at(path)
    async with bg:
        bg._parts.runner.begin_drain()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            posts = [asyncio.create_task(bg.enqueue(nothing)) for _ in range(10_000)]
            await stalled(bg)
            began = time.perf_counter()
            with pytest.raises(OverloadedError):
                await bg.enqueue(nothing)
            took = time.perf_counter() - began
            other.execute("ROLLBACK")
        accepted = await asyncio.gather(*posts, return_exceptions=True)

    assert took < REFUSED_WITHIN_S
    assert stored(path) == len([job for job in accepted if not isinstance(job, BaseException)])


async def stalled(bg: AsyncBG) -> None:
    """Wait until a commit has hung for a while."""
    async with asyncio.timeout(60):
        while bg._parts.database.stalled_s < 0.6:  # noqa: ASYNC110 - of a hanging commit nobody tells
            await asyncio.sleep(0.02)
