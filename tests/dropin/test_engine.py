"""Several engines: in one app, in two apps, and two processes on one database."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi import Depends, FastAPI

from asyncbg import AsyncBG, BackgroundTasks, Job, JobBackgroundTasks
from asyncbg.errors import NotRunningError
from tests.dropin.conftest import jobs, note, ran


@pytest.fixture
def other(make_bg: Callable[..., AsyncBG], tmp_path: Path) -> AsyncBG:
    """An engine on another database."""
    return make_bg(tmp_path / "other.db")


async def listed(http: Any, prefix: str) -> list[str]:
    """The ids of the jobs that a router shows."""
    return [job["id"] for job in (await http.get(f"{prefix}/jobs")).json()["items"]]


async def test_two_engines_in_one_app(bg: AsyncBG, other: AsyncBG, serve: Any) -> None:
    """``Depends(bg.provide)`` names the engine; without it, the one whose lifespan started first is meant."""
    app = FastAPI(lifespan=bg.lifespan(other.lifespan))
    app.include_router(bg.router, prefix="/bg")
    app.include_router(other.router, prefix="/other")

    @app.post("/")
    async def route(
        plain: BackgroundTasks,
        ours: Annotated[JobBackgroundTasks, Depends(bg.provide, scope="function")],
        theirs: Annotated[JobBackgroundTasks, Depends(other.provide, scope="function")],
    ) -> None:
        jobs.append(plain.add_task(note, "plain"))
        jobs.append(ours.add_task(note, "ours"))
        jobs.append(theirs.add_task(note, "theirs"))

    http = await serve(app)
    await http.post("/")
    for job in jobs:
        await job.result(timeout=5)

    assert await listed(http, "/bg") == [jobs[1].id]
    assert sorted(await listed(http, "/other")) == sorted([jobs[0].id, jobs[2].id])


async def test_a_task_is_a_job_of_its_own_engine(bg: AsyncBG, other: AsyncBG, serve: Any) -> None:
    """Whichever container it is added to, or engine asked: only its own engine knows the task."""
    app = FastAPI(lifespan=bg.lifespan(other.lifespan))
    app.include_router(bg.router, prefix="/bg")
    app.include_router(other.router, prefix="/other")
    ours, theirs = bg.task(name="ours")(note), other.task(name="theirs")(note)

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(ours, "a"))
        jobs.append(background_tasks.add_task(theirs.options(priority=5), "b"))
        jobs.append(await bg.enqueue(theirs, "c"))

    http = await serve(app)
    await http.post("/")
    for job in jobs:
        await job.result(timeout=5)

    assert await listed(http, "/bg") == [jobs[0].id]
    assert sorted(await listed(http, "/other")) == sorted([jobs[1].id, jobs[2].id])


async def test_one_engine_serves_one_lifespan_at_a_time(bg: AsyncBG, app: FastAPI, serve: Any) -> None:
    """A second app with the same engine does not start; the first one is not disturbed."""
    http = await serve(app)
    second = FastAPI(lifespan=bg.lifespan)

    with pytest.raises(NotRunningError, match="is running already"):
        await serve(second)

    assert (await http.get("/bg/health/live")).status_code == 200
    assert bg.is_running


async def test_two_engines_on_one_file_share_the_work(make_bg: Callable[..., AsyncBG], serve: Any) -> None:
    """Each sees the other's jobs and events; every job runs once, in either."""
    one, two = make_bg(), make_bg()

    @one.task(name="work")
    async def work_one(text: str) -> None:
        ran.append(text)

    @two.task(name="work")
    async def work_two(text: str) -> None:
        ran.append(text)

    app = FastAPI(lifespan=one.lifespan(two.lifespan))
    await serve(app)
    jobs.extend([await (work_one if number % 2 else work_two).enqueue(str(number)) for number in range(20)])
    for job in jobs:
        await (await_in_the_other(job, one, two)).result(timeout=10)

    assert sorted(ran, key=int) == [str(number) for number in range(20)]


def await_in_the_other(job: Job, one: AsyncBG, two: AsyncBG) -> Job:
    """A handle on the job at the engine that did not accept it."""
    control = two._parts.control if job._control is one._parts.control else one._parts.control
    return Job(control, job.id, task=job.task, state=job.state, batch=job.batch, owner=job.owner)


SCRIPT = """
import asyncio, sys
from asyncbg import AsyncBG

bg = AsyncBG(database_url=sys.argv[1])

@bg.task(name="work")
async def work(text: str) -> str:
    return f"done by another process: {text}"

async def main() -> None:
    async with bg:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


async def test_another_process_on_the_same_file_does_the_work(
    make_bg: Callable[..., AsyncBG], database: Path, serve: Any
) -> None:
    """A job whose task this process does not run is taken by one that knows it, and its end is heard of here."""
    bg = make_bg()
    app = FastAPI(lifespan=bg.lifespan)
    await serve(app)
    bg._parts.runner.begin_drain()

    @bg.task(name="work")
    async def work(text: str) -> str:
        raise AssertionError("not here")

    command = [sys.executable, "-c", SCRIPT, f"sqlite:///{database}"]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert b"ready" in await process.stdout.receive()
        job = await work.enqueue("hello")

        assert await job.result(timeout=10) == "done by another process: hello"

        await process.stdin.aclose()
        assert await process.wait() == 0


def test_bg_shows_only_what_a_user_calls(bg: AsyncBG) -> None:
    """Its parts are under one private name, so completion and documentation list methods for users."""
    assert {name for name in dir(bg) if not name.startswith("_")} == {
        "accept", "attempts", "backend", "bus", "cancel", "clock", "enqueue", "get", "is_running", "lifespan", "on",
        "prepare", "provide", "retry", "router", "schedule", "settings", "start", "stop", "submit", "task",
        "unknown_tasks", "wait", "watch",
    }  # fmt: skip


def test_reading_the_router_changes_nothing(bg: AsyncBG) -> None:
    """The property returns one object, and leaves the engine's commit listeners alone."""
    before, listeners = bg.backend.on_commit, list(bg._parts.relay.listeners)

    assert bg.router is bg.router
    assert (bg.backend.on_commit, bg._parts.relay.listeners) == (before, listeners)
