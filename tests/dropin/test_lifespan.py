"""The lifespan: a clean start and stop, around the user's own, and a clear word where it is missing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.testclient import TestClient

from asyncbg import AsyncBG, BackgroundTasks, Job
from asyncbg.errors import DatabaseError, NotRunningError

Threads = Callable[[], set[str]]
steps: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_happened() -> None:
    steps.clear()


async def note(text: str) -> str:
    """A task."""
    steps.append(text)
    return text


def with_route(app: FastAPI) -> FastAPI:
    """Add a route that adds a job and tells its id."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> str:
        return background_tasks.add_task(note, "ran").id

    return app


def loops() -> list[str]:
    """The asyncio tasks of ours that are there."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("asyncbg")]


def test_without_the_lifespan_the_error_says_what_to_do(bg: AsyncBG) -> None:
    """A TestClient that is not entered runs no lifespan; forgetting ``lifespan=`` is told alike."""
    client = TestClient(with_route(FastAPI(lifespan=bg.lifespan)))

    with pytest.raises(NotRunningError, match=r"FastAPI\(lifespan=bg\.lifespan\).*with TestClient\(app\)"):
        client.post("/")


def test_a_testclient_runs_it_and_may_run_it_again(bg: AsyncBG, threads: Threads) -> None:
    """The same engine starts, stops and starts again, each time on another event loop, and leaves nothing."""
    app = with_route(FastAPI(lifespan=bg.lifespan))
    app.include_router(bg.router, prefix="/bg")

    for _ in range(3):
        with TestClient(app) as client:
            job_id = client.post("/").json()
            job = client.get(f"/bg/jobs/{job_id}", params={"wait": 5}).json()
            events = client.get(f"/bg/jobs/{job_id}/events").text
            assert job["state"] == "succeeded"
            assert "event: job.succeeded" in events
        assert not bg.is_running
        assert threads() == set()

    assert steps == ["ran"] * 3


async def test_stopping_leaves_no_task_and_no_thread(app: FastAPI, bg: AsyncBG, threads: Threads) -> None:
    """After the lifespan all of the engine's loops, connections and threads are gone."""
    async with app.router.lifespan_context(app):
        await (await bg.enqueue(note, "a")).result(timeout=5)
        assert loops()
        assert threads()

    assert loops() == []
    assert threads() == set()


async def test_the_users_own_lifespan_is_outside(bg: AsyncBG) -> None:
    """What it opens is there for every job, and is closed when no job runs any more; its state reaches requests."""
    taken = asyncio.Event()

    async def job() -> None:
        taken.set()
        try:
            await asyncio.sleep(60)
        finally:
            steps.append("the job ended")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        steps.append("opened")
        assert not bg.is_running
        yield {"pool": "a pool"}
        assert not bg.is_running
        steps.append("closed")

    app = FastAPI(lifespan=bg.lifespan(lifespan))
    async with app.router.lifespan_context(app) as state:
        assert state == {"pool": "a pool"}
        assert bg.is_running
        await bg.enqueue(job)
        await taken.wait()

    assert steps == ["opened", "the job ended", "closed"]


def test_its_state_reaches_the_requests(bg: AsyncBG) -> None:
    """``request.state`` holds what the user's lifespan yielded; a plain generator function will do."""

    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"pool": "a pool"}

    app = FastAPI(lifespan=bg.lifespan(lifespan))

    @app.get("/")
    async def route(request: Request) -> str:
        return str(request.state.pool)

    with TestClient(app) as client:
        assert client.get("/").json() == "a pool"


def test_it_may_be_a_router_s_lifespan(bg: AsyncBG) -> None:
    """FastAPI runs the lifespans of included routers too."""
    router = APIRouter(lifespan=bg.lifespan)
    app = with_route(FastAPI())
    app.include_router(router)

    with TestClient(app) as client:
        assert client.post("/").status_code == 200


async def test_a_database_that_cannot_be_opened_stops_the_start(make_bg: Any, tmp_path: Path, threads: Threads) -> None:
    """A directory that is not there: one error that says so, and nothing is left behind."""
    bg = make_bg(tmp_path / "missing" / "jobs.db")
    app = FastAPI(lifespan=bg.lifespan)

    with pytest.raises(DatabaseError):
        async with app.router.lifespan_context(app):
            pass

    assert loops() == []
    assert threads() == set()
    assert not bg.is_running


async def test_a_start_that_failed_may_be_tried_again(make_bg: Any, tmp_path: Path, threads: Threads) -> None:
    """Once the directory is there, the same engine starts."""
    bg = make_bg(tmp_path / "missing" / "jobs.db")
    with pytest.raises(DatabaseError):
        await bg.start()
    (tmp_path / "missing").mkdir()

    async with bg:
        assert await (await bg.enqueue(note, "a")).result(timeout=5) == "a"

    assert threads() == set()


async def test_a_users_lifespan_that_fails_leaves_nothing(bg: AsyncBG, threads: Threads) -> None:
    """It fails before the engine starts, so there is nothing to stop; or when it ends, after the engine stopped."""

    @asynccontextmanager
    async def fails_first(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no configuration")
        yield

    @asynccontextmanager
    async def fails_last(app: FastAPI) -> AsyncIterator[None]:
        yield
        raise RuntimeError("cannot close")

    for lifespan, words in [(fails_first, "no configuration"), (fails_last, "cannot close")]:
        app = FastAPI(lifespan=bg.lifespan(lifespan))
        with pytest.raises(RuntimeError, match=words):
            async with app.router.lifespan_context(app):
                pass
        assert not bg.is_running
        assert loops() == []
        assert threads() == set()


async def test_an_error_in_the_app_still_stops_the_engine(app: FastAPI, bg: AsyncBG, threads: Threads) -> None:
    """Whatever ends the lifespan, the engine is stopped."""
    with pytest.raises(KeyError):
        async with app.router.lifespan_context(app):
            raise KeyError("the server died")

    assert not bg.is_running
    assert threads() == set()


async def test_a_job_waits_for_the_next_life(bg: AsyncBG, app: FastAPI) -> None:
    """A job that is not finished when the app stops runs when it is started again."""
    gate, taken = asyncio.Event(), asyncio.Event()

    @bg.task
    async def wait_at_gate() -> str:
        taken.set()
        await gate.wait()
        return "through"

    async with app.router.lifespan_context(app):
        job: Job = await wait_at_gate.enqueue()
        await taken.wait()
    gate.set()

    async with app.router.lifespan_context(app):
        assert await job.result(timeout=10) == "through"


async def test_jobs_are_refused_when_the_engine_has_stopped(bg: AsyncBG) -> None:
    """Outside its life the engine says that it is not running, and how to start it."""
    with pytest.raises(NotRunningError, match="async with bg"):
        await bg.enqueue(note, "a")

    async with bg:
        pass

    with pytest.raises(NotRunningError):
        await bg.enqueue(note, "a")
