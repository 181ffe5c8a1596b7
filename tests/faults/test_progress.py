"""Progress reaches every stream, whichever of several processes runs the job, never from an attempt that is over."""

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from asyncbg import JobState
from asyncbg.client import Client
from asyncbg.core.event import Event
from asyncbg.engine import Engine
from asyncbg.settings import load_settings
from tests.faults.stream_server import Server, free_port

SOON_S = 30.0
STREAMS, STEPS, PAUSE_S = 8, 15, 0.1
APP = "progress_app:app"


@dataclass
class Seen:
    """What one stream showed of a job, and how late."""

    types: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    def note(self, kind: str, data: dict[str, Any]) -> None:
        """Take one frame."""
        self.types.append(kind)
        if kind == "job.progress":
            self.steps.append(int(data["current"]))
            self.late_s.append(time.monotonic() - data["total"])


async def listen(url: str, job_id: str) -> Seen:
    """A job's stream on a connection of its own, to its end."""
    seen = Seen()
    async with aiohttp.ClientSession() as session, session.get(f"{url}/events?batch={job_id}") as answer:
        kind = ""
        async for line in answer.content:
            if line.startswith(b"event: "):
                kind = line[7:].decode().strip()
            elif line.startswith(b"data: "):
                seen.note(kind, json.loads(line[6:])["data"])
                if kind == "job.succeeded":
                    return seen
    return seen


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that runs the jobs of a database."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).parent / "progress_app.py"), str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SOON_S):
            assert await process.stdout.readline() == b"running\n"
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGKILL)
        await process.wait()


@asynccontextmanager
async def onlooker(path: Path, **runner: Any) -> AsyncIterator[Engine]:
    """An engine in this process that runs nothing and follows what others do."""
    engine = Engine(load_settings(database_url=f"sqlite:///{path}", runner=runner))
    for name in ("count", "count_on"):
        engine.task(name=name)(_elsewhere)
    async with engine:
        engine._parts.runner.begin_drain()
        yield engine


async def _elsewhere(steps: int, pause_s: float = 0.0) -> None:
    """What the other process knows under this name."""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Start servers on one database: ``await service("--workers", "2")``."""
    async with AsyncExitStack() as stack:

        async def start(*arguments: str) -> Server:
            server = Server(tmp_path, free_port(), *arguments, app=APP)
            stack.push_async_callback(server.end, signal.SIGTERM)
            await server.start()
            return server

        yield start


def is_whole(seen: Seen) -> bool:
    """Whether a stream showed progress all along, in order, and the last value before the end."""
    return (
        len(seen.steps) >= STEPS // 2
        and seen.steps == sorted(seen.steps)
        and seen.steps[-1] == STEPS
        and seen.types[-2:] == ["job.progress", "job.succeeded"]
    )


async def test_every_stream_of_two_workers_sees_the_progress(service: Callable[..., Awaitable[Server]]) -> None:
    """Behind one port, whichever worker has the stream and whichever runs the job; half a frame's pace late at most."""
    server = await service("--workers", "2")
    async with Client(server.url) as client, asyncio.timeout(SOON_S):
        delayed = await client.submit("count", {"steps": STEPS, "pause_s": PAUSE_S}, delay_s=0.7)
        seen = await asyncio.gather(*(listen(server.url, delayed.id) for _ in range(STREAMS)))

    assert [is_whole(one) for one in seen] == [True] * STREAMS, seen
    assert statistics.median(late for one in seen for late in one.late_s) < 0.3


async def test_a_server_beside_a_worker_shows_its_progress(
    service: Callable[..., Awaitable[Server]], tmp_path: Path
) -> None:
    """The job runs where no stream is open; ``GET /jobs/{id}`` shows the progress as well."""
    server = await service()
    async with running(tmp_path / "jobs.db"), Client(server.url) as client, asyncio.timeout(SOON_S):
        jobs = [await client.submit("count", {"steps": STEPS, "pause_s": PAUSE_S}, delay_s=0.7) for _ in range(6)]
        seen = await asyncio.gather(*(listen(server.url, job.id) for job in jobs))
        results = {await client.result(job.id) for job in jobs}

    assert [is_whole(one) for one in seen] == [True] * len(jobs), seen
    assert len(results) == 2, "one process ran them all; the test says nothing"


async def test_the_last_value_comes_before_the_end_however_quick_the_job(tmp_path: Path) -> None:
    """A value that is set just before the end is in the commit that ends the job, and is shown before it."""
    async with onlooker(tmp_path / "jobs.db") as here, running(tmp_path / "jobs.db"), asyncio.timeout(SOON_S):
        jobs = [await here.submit("count", {"steps": 3, "pause_s": 0.0}) for _ in range(20)]
        stories = [[event async for event in job.events()] for job in jobs]

    for story in stories:
        assert story[-1].type == "job.succeeded"
    live = [story for story in stories if story[-2].type == "job.progress"]
    assert live, "every job had ended before it was watched"
    assert all(story[-2].payload()["current"] == 3 for story in live)


async def test_nothing_is_read_of_the_jobs_where_nobody_looks(tmp_path: Path) -> None:
    """Without a subscriber or a handler of progress the tail asks for the end of the log only."""
    async with onlooker(tmp_path / "jobs.db") as here:
        assert not here.bus.wants_progress
        here.on("job.failed")(lambda event: None)
        assert not here.bus.wants_progress
        here.on("job.*")(lambda event: None)
        assert here.bus.wants_progress


async def test_a_thawed_process_shows_nothing_of_an_attempt_that_was_taken_over(tmp_path: Path) -> None:
    """It was frozen until its lease lapsed; what it goes on to report reaches no stream and no reader anywhere."""
    path, lease_s = tmp_path / "jobs.db", 0.5
    os.environ["ASYNCBG_RUNNER__LEASE_S"] = str(lease_s)
    try:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(running(path))
            here = await stack.enter_async_context(onlooker(path, lease_s=lease_s))
            job = await here.submit("count_on", {"steps": 100})
            await _until(lambda: _progress(here, job.id), lambda step: step > 5)
            first.send_signal(signal.SIGSTOP)
            await _until(lambda: _attempt_lost(here, job.id), bool)
            second = await stack.enter_async_context(running(path))
            watching = asyncio.create_task(_story(here, job.id))
            await _until(lambda: _progress(here, job.id, attempt=2), lambda step: step > 1)
            first.send_signal(signal.SIGCONT)
            async with asyncio.timeout(SOON_S):
                story = await watching
            record = await here.get(job.id)
            assert (second.returncode, record.state, record.attempt) == (None, JobState.SUCCEEDED, 2)
    finally:
        del os.environ["ASYNCBG_RUNNER__LEASE_S"]

    restarted = next(at for at, event in enumerate(story) if event.type == "job.started" and event.attempt == 2)
    after = [event for event in story[restarted:] if event.type == "job.progress"]
    assert {(event.attempt, event.payload()["message"]) for event in after} == {(2, "attempt 2")}
    steps = [event.payload()["current"] for event in after]
    assert steps == sorted(steps)
    assert steps[-1] == 100


async def _story(here: Engine, job_id: str) -> list[Event]:
    return [event async for event in here.watch(job_id)]


async def _progress(here: Engine, job_id: str, *, attempt: int = 1) -> float:
    record = await here.get(job_id)
    told = record.progress is not None and record.progress.message == f"attempt {attempt}"
    return record.progress.current if told and record.progress is not None else 0


async def _attempt_lost(here: Engine, job_id: str) -> bool:
    return (await here.get(job_id)).state is JobState.QUEUED


async def _until(ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> None:
    """Look until something is so; the other process has no way to say it."""
    async with asyncio.timeout(SOON_S):
        while not holds(await ask()):  # noqa: ASYNC110 - nothing to wait for but another process
            await asyncio.sleep(0.02)
