"""The engine that is driven by hand: what drain does and does not, crashes, hanging workers, the clock."""

import asyncio
import threading
from pathlib import Path

import pytest
from fastapi import FastAPI

from asyncbg import AsyncBG, Event, Job, JobState
from asyncbg.core.clock import ManualClock
from asyncbg.core.event import EventFilter
from asyncbg.engine.target import prepare_target
from asyncbg.errors import JobFailedError, JobNotFoundError, NotRunningError
from asyncbg.testing import ManualBG, started, stream

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


async def greet(name: str) -> str:
    """A task."""
    ran.append(name)
    return f"Hello {name}"


def shout(name: str) -> str:
    """A task that is a plain function."""
    return name.upper()


async def test_nothing_runs_before_drain(bg: ManualBG) -> None:
    """An accepted job stays queued until the test says so; then it has run when drain returns."""
    job = await bg.enqueue(greet, "Ada")
    assert (await job.refresh()).state is JobState.QUEUED
    assert ran == []

    await bg.drain()

    assert (await job.refresh()).state is JobState.SUCCEEDED
    assert await job.result() == "Hello Ada"


async def test_drain_runs_what_jobs_lead_to(bg: ManualBG) -> None:
    """Jobs that jobs enqueue, jobs of a batch, jobs whose result a job awaits, and those of event handlers."""

    @bg.task
    async def parent() -> str:
        child = await bg.enqueue(greet, "child")
        return str(await child.result(timeout=5))

    @bg.on("job.succeeded", task="parent")
    async def follow(event: Event) -> None:
        await bg.enqueue(greet, "handler")

    job = await parent.enqueue()

    await bg.drain()

    assert await job.result() == "Hello child"
    assert ran == ["child", "handler"]


async def test_drain_waits_for_plain_functions(bg: ManualBG) -> None:
    """A function in a thread is a job like any other."""
    job = await bg.enqueue(shout, "ada")

    await bg.drain()

    assert await job.result() == "ADA"


async def test_more_jobs_than_slots_are_all_run(bg: ManualBG) -> None:
    """Drain goes on claiming as slots become free."""
    for number in range(250):
        await bg.enqueue(greet, str(number))

    await bg.drain()

    assert len(ran) == 250


async def test_a_delayed_job_runs_when_its_time_has_come(bg: ManualBG, bg_clock: ManualClock) -> None:
    """Drain does not wait: before its time a job stays scheduled."""
    job = await bg.task(greet).options(delay=60).enqueue("Ada")
    await bg.drain()
    assert (await job.refresh()).state is JobState.SCHEDULED

    bg_clock.advance(minutes=1)
    await bg.drain()

    assert (await job.refresh()).state is JobState.SUCCEEDED


async def test_a_retry_waits_for_the_clock(bg: ManualBG, bg_clock: ManualClock) -> None:
    """A failed attempt is tried again once the clock has passed its delay, and not in the same drain."""

    @bg.task(retries=1)
    async def flaky() -> str:
        ran.append("attempt")
        if len(ran) == 1:
            raise ConnectionError("nobody answers")
        return "done"

    job = await flaky.enqueue()
    await bg.drain()
    assert (await job.refresh()).state is JobState.SCHEDULED

    bg_clock.advance(minutes=5)
    await bg.drain()

    assert await job.result() == "done"


async def test_a_schedule_fires_when_the_clock_has_moved(bg: ManualBG, bg_clock: ManualClock) -> None:
    """Of the slots missed meanwhile the latest makes one job, as after any downtime."""

    @bg.schedule("*/5 * * * *")
    async def report() -> None:
        ran.append("report")

    await bg.drain()
    assert ran == []

    bg_clock.advance(hours=1)
    await bg.drain()

    assert ran == ["report"]


async def test_old_jobs_are_purged_when_the_clock_has_moved(bg: ManualBG, bg_clock: ManualClock) -> None:
    """Retention follows the clock too."""
    job = await bg.enqueue(greet, "Ada")
    await bg.drain()

    bg_clock.advance(days=8)
    await bg.drain()

    with pytest.raises(JobNotFoundError):
        await job.refresh()


async def test_a_lapsed_lease_is_run_again(bg: ManualBG, bg_clock: ManualClock) -> None:
    """A job whose worker disappeared runs once more after its lease ends."""
    job = await bg.enqueue(greet, "Ada")
    await bg.vanish(job)
    await bg.drain()
    assert (await job.refresh()).state is JobState.RUNNING
    bg_clock.advance(minutes=5)

    await bg.drain()

    assert (await job.refresh()).state is JobState.SUCCEEDED
    assert ran == ["Ada"]


async def test_vanish_takes_only_the_next_job(bg: ManualBG) -> None:
    """Another job than the one that is next is refused, and the error says which that is."""
    first, second = await bg.enqueue(greet, "first"), await bg.enqueue(greet, "second")

    with pytest.raises(AssertionError, match=first.id):
        await bg.vanish(second)


async def begun(bg: ManualBG) -> tuple[Job, asyncio.Event]:
    """A job that is in the middle of its first attempt, and has no end before its second."""
    is_there = asyncio.Event()

    @bg.task(name="held")
    async def held() -> str:
        ran.append("attempt")
        is_there.set()
        if len(ran) == 1:
            await asyncio.Event().wait()
        return "done"

    job = await held.enqueue()
    await bg.begin()
    await is_there.wait()
    return job, is_there


async def test_after_a_crash_the_same_engine_takes_its_jobs_up(bg: ManualBG) -> None:
    """What ran is settled by nobody; the next start finds it at its own place and runs it again."""
    job, _ = await begun(bg)

    await bg.crash()
    assert not bg.is_running
    await bg.start()
    assert (await job.refresh()).state is JobState.QUEUED
    await bg.drain()

    assert await job.result() == "done"
    events, _ = await bg.backend.events(after_seq=0, wanted=EventFilter(), limit=100)
    assert [event.type for event in events] == [
        "job.queued", "job.started", "job.queued", "job.started", "job.succeeded",
    ]  # fmt: skip
    assert (await bg.get(job.id)).crashes == 1


async def test_after_a_crash_another_engine_takes_its_jobs_up(bg: ManualBG, tmp_path: Path) -> None:
    """The place is let go: a neighbour on the file finds the job without waiting for its lease."""
    job, _ = await begun(bg)
    await bg.crash()

    async with ManualBG(database_url=f"sqlite:///{tmp_path}/asyncbg.db", data_dir=tmp_path) as other:
        other.task(name="held")(greet_nobody)
        await other.drain()

        assert (await other.get(job.id)).state is JobState.SUCCEEDED


async def greet_nobody() -> str:
    """A task."""
    return "done elsewhere"


async def test_a_crash_stores_nothing_of_what_the_dying_job_says(bg: ManualBG) -> None:
    """Its finalisers run, since the interpreter lives on, but reach no disk; nor does what it returns."""
    is_there = asyncio.Event()

    @bg.task
    async def stubborn() -> str:
        is_there.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ran.append("cancelled")
        return "in spite of it"

    job = await stubborn.enqueue()
    await bg.begin()
    await is_there.wait()

    await bg.crash()
    await bg.start()

    assert ran == ["cancelled"]
    assert (await bg.get(job.id)).state is JobState.QUEUED


async def test_a_crash_leaves_workers_that_hang_elsewhere(bg: ManualBG, bg_clock: ManualClock) -> None:
    """What another worker holds is taken up when its lease has lapsed, not because this one was gone."""
    job = await bg.enqueue(greet, "Ada")
    await bg.vanish(job)

    await bg.crash()
    await bg.start()
    await bg.drain()
    assert (await job.refresh()).state is JobState.RUNNING

    bg_clock.advance(minutes=5)
    await bg.drain()
    assert (await job.refresh()).state is JobState.SUCCEEDED


async def test_a_crash_does_not_wait_for_threads(bg: ManualBG) -> None:
    """A plain function goes on in its thread, and what it returns then counts for nothing."""
    is_there, may_end = threading.Event(), threading.Event()

    @bg.task
    def stuck() -> str:
        ran.append("attempt")
        is_there.set()
        if len(ran) == 1:
            may_end.wait(20)
            return "of the crashed life"
        return "of the next life"

    job = await stuck.enqueue()
    await bg.begin()
    await asyncio.to_thread(is_there.wait, 20)

    await bg.crash()
    await bg.start()
    may_end.set()
    await bg.drain()

    assert await job.result() == "of the next life"


async def test_a_drain_ends_with_a_crash(bg: ManualBG) -> None:
    """Who drains while another crashes the engine is not left waiting."""
    is_there = asyncio.Event()

    @bg.task
    async def held() -> None:
        is_there.set()
        await asyncio.Event().wait()

    await held.enqueue()
    draining = asyncio.create_task(bg.drain())
    await is_there.wait()

    await bg.crash()

    await draining


async def test_poison_is_seen_after_three_crashes(bg: ManualBG) -> None:
    """A job that takes its process down every time is failed in the end."""

    @bg.task
    async def killer() -> None:
        ran.append("attempt")
        await asyncio.Event().wait()

    job = await killer.enqueue()
    for _ in range(3):
        await bg.begin()
        await bg.crash()
        await bg.start()

    with pytest.raises(JobFailedError):
        await job.result(timeout=5)


async def test_a_drain_that_does_not_end_names_what_runs(bg: ManualBG) -> None:
    """The error has the task and the job, and what to do."""

    @bg.task
    async def held() -> None:
        await asyncio.Event().wait()

    job = await held.enqueue()

    with pytest.raises(TimeoutError, match=rf"held \({job.id}\).*first"):
        await bg.drain(timeout_s=0.05)


async def test_an_engine_that_is_stopped_says_so(bg: ManualBG) -> None:
    """Drain and crash need a running engine; the error says how to get one."""
    await bg.stop()

    for call in (bg.drain, bg.begin, bg.crash):
        with pytest.raises(NotRunningError, match="fixture"):
            await call()


async def test_an_app_may_start_and_stop_while_it_runs(bg: ManualBG) -> None:
    """The lifespan joins the engine that the fixture started, streams work in every life of the app."""
    for _ in range(2):
        app = FastAPI(lifespan=bg.lifespan)
        app.include_router(bg.router)
        async with started(app), stream(app, "/events") as events:
            assert (await events.frame()) is not None
            job = await bg.enqueue(greet, "Ada")
            assert (await events.next()).json()["subject"] == job.id

        await bg.drain()

        assert (await job.refresh()).state is JobState.SUCCEEDED


async def test_an_unknown_task_ends_no_drain(bg: ManualBG, tmp_path: Path) -> None:
    """A job whose task is not loaded here stays queued for others."""
    async with AsyncBG(database_url=f"sqlite:///{tmp_path}/other.db", data_dir=tmp_path) as other:
        foreign = other.task(name="foreign")(greet)
        prepared = prepare_target(other._parts.enqueuer, foreign, ("Ada",), {})
    await bg._parts.enqueuer.accept([prepared])

    await bg.drain()

    assert (await bg.get(prepared.job.id)).state is JobState.QUEUED
