"""An event loop that was closed before the engine was stopped: the next start takes over, and what ran runs again."""

import asyncio
import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asyncbg import AsyncBG
from asyncbg.core.event import Event
from asyncbg.core.job import JobState
from asyncbg.errors import NotRunningError

SOON_S = 10
attempts: list[int] = []


async def again() -> str:
    """Hang at the first attempt."""
    attempts.append(1)
    if len(attempts) == 1:
        await asyncio.Event().wait()
    return "done"


@pytest.fixture(autouse=True)
def _no_attempts() -> None:
    attempts.clear()


@pytest.fixture
def bg(tmp_path: Path) -> AsyncBG:
    """An engine, not started."""
    return AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)


@pytest.fixture
def heard(bg: AsyncBG) -> list[str]:
    """What a handler of the engine has heard."""
    types: list[str] = []

    @bg.on("job.*")
    async def hear(event: Event) -> None:
        types.append(event.type)

    return types


async def leave(bg: AsyncBG) -> str:
    """Start, let a job run, wait for a handler, subscribe, and go without a stop."""
    await bg.start()
    job = await bg.enqueue(again)
    while not attempts:  # noqa: ASYNC110 - an event would belong to one loop
        await asyncio.sleep(0.005)
    waiting = asyncio.create_task(job.result(SOON_S))
    await asyncio.sleep(0)
    assert not waiting.done()
    return job.id


async def come_back(bg: AsyncBG, job_id: str) -> tuple[Any, str]:
    """Start again, and wait for the job of before and for one of now."""
    async with bg:
        before = await bg.wait(job_id, SOON_S)
        assert before.state is JobState.SUCCEEDED
        result = await (await bg.enqueue(again)).result(SOON_S)
        assert await bg.bus.join_handlers(SOON_S)
        return json.loads(before.result or "null"), result


def test_the_next_start_takes_over(bg: AsyncBG, heard: list[str]) -> None:
    """The job that ran is not cancelled: nobody cancelled it. Handlers hear of the new life, no thread is left."""
    before = set(threading.enumerate())
    for _ in range(2):
        attempts.clear()
        heard.clear()
        job_id = asyncio.run(leave(bg))
        assert not bg.is_running

        assert asyncio.run(come_back(bg, job_id)) == ("done", "done")
        assert heard.count("job.succeeded") == 2

    assert [thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("AnyIO")] == []


def test_nothing_is_accepted_between(bg: AsyncBG) -> None:
    """A closed loop runs nothing, so a job would wait for ever."""
    asyncio.run(leave(bg))

    with pytest.raises(NotRunningError, match="is not running"):
        asyncio.run(bg.enqueue(again))
    asyncio.run(bg.stop())


def test_a_stop_in_another_loop_closes_all(bg: AsyncBG) -> None:
    """As a fixture's clean-up may do it; it can be called twice, and the engine started afterwards."""
    job_id = asyncio.run(leave(bg))

    asyncio.run(bg.stop())
    asyncio.run(bg.stop())

    assert asyncio.run(come_back(bg, job_id)) == ("done", "done")


def test_an_application_serves_after_a_loop_that_was_left(bg: AsyncBG) -> None:
    """Its lifespan takes over, streams and all."""
    job_id = asyncio.run(leave(bg))
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)

    with TestClient(app) as client:
        job = client.get(f"/jobs/{job_id}", params={"wait": SOON_S}).json()
        frames = client.get(f"/jobs/{job_id}/events").text
        ready = client.get("/health/ready").status_code

    assert (job["state"], frames.count("event: job.succeeded"), ready) == ("succeeded", 1, 200)


def test_an_engine_that_runs_in_a_loop_that_is_open_is_not_taken(bg: AsyncBG) -> None:
    """It may go on there."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(bg.start())

    with pytest.raises(NotRunningError, match="is running already"):
        asyncio.run(bg.start())

    loop.run_until_complete(bg.stop())
    loop.close()


def test_a_signal_after_the_loop_was_closed_reaches_the_handler_before(bg: AsyncBG) -> None:
    """Ours has nothing to begin any more, and does not keep the application's own from being called."""
    got: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    kept: list[object] = []

    async def serve() -> None:
        lifespan = bg.lifespan(FastAPI())
        kept.append(lifespan)  # or it would end here
        await lifespan.__aenter__()

    try:
        asyncio.run(serve())
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
        asyncio.run(bg.stop())

    assert got == [signal.SIGTERM]
