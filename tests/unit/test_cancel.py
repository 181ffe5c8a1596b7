"""Cancelling what runs: one cancellation, a bounded time to end, a token for threads, a word about who ignores it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from asyncbg.core.job import JobRecord, JobState
from asyncbg.engine import Engine, Job
from asyncbg.engine.context import current_job
from asyncbg.errors import FinalError, JobCancelledError, JobFailedError
from asyncbg.settings import load_settings

SOON_S = 10
GRACE_S = 0.2


def make(path: Path) -> Engine:
    """An engine with two threads, on a file that others share."""
    runner = {"cancel_grace_s": GRACE_S, "shutdown_grace_s": 0, "threads": 2}
    return Engine(load_settings(database_url=f"sqlite:///{path}", runner=runner))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running engine."""
    async with make(tmp_path / "jobs.db") as running:
        yield running


async def final(job: Job) -> JobRecord:
    """The record of a job that is over."""
    with contextlib.suppress(JobCancelledError, JobFailedError):
        await job.result(SOON_S)
    return await job._control.get(job.id)


async def happened(engine: Engine, job: Job, event_type: str) -> dict[str, object]:
    """Wait for an event of a job; its data."""
    async with asyncio.timeout(SOON_S):
        async for event in engine.watch(job.id):
            if event.type == event_type:
                return event.payload()
    raise AssertionError(f"no {event_type}")


async def told(event: threading.Event) -> None:
    """Wait for a thread."""
    assert await asyncio.to_thread(event.wait, SOON_S)


# Coroutines


async def test_a_coroutine_sees_one_cancellation_and_may_clean_up(engine: Engine) -> None:
    """A second cancel changes nothing; what it awaits in ``finally`` is not interrupted."""
    began, seen = asyncio.Event(), []

    @engine.task
    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(str(current_job().cancelled.reason))
            raise
        finally:
            await asyncio.sleep(GRACE_S / 4)
            seen.append("cleaned up")

    job = await work.enqueue()
    await began.wait()
    await job.cancel("enough")
    await job.cancel("enough, I said")
    record = await final(job)

    assert (record.state, record.cancel_reason) == (JobState.CANCELLED, "enough")
    assert seen == ["enough", "cleaned up"]
    assert "job.cancel_ignored" not in [event.type async for event in job.events()]


async def test_a_job_that_ignores_its_cancellation_is_reported_and_goes_on(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs under its lease until it ends; one that returns then has succeeded."""
    began, release = asyncio.Event(), asyncio.Event()

    @engine.task
    async def deaf() -> str:
        began.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()
        return "finished"

    job = await deaf.enqueue()
    await began.wait()
    await job.cancel("enough")
    data = await happened(engine, job, "job.cancel_ignored")
    state = (await job.refresh()).state
    release.set()

    assert data == {"reason": "enough", "grace_s": GRACE_S}
    assert state is JobState.RUNNING
    assert await job.result(SOON_S) == "finished"
    assert [f"job {job.id} (deaf) ignored cancellation" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("error", [ValueError, FinalError])
async def test_an_error_on_the_way_out_leaves_the_job_cancelled(engine: Engine, error: type[Exception]) -> None:
    """It is neither failed nor tried again."""
    began = asyncio.Event()

    @engine.task(retries=3)
    async def clumsy() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise error("in the finaliser")

    job = await clumsy.enqueue()
    await began.wait()
    await job.cancel("enough")

    assert (await final(job)).state is JobState.CANCELLED


async def test_a_coroutine_that_ignores_its_timeout_is_reported(engine: Engine) -> None:
    """Timeouts go the same way: one cancellation, a bounded time, a word about it."""
    release = asyncio.Event()

    @engine.task(timeout=0.05)
    async def deaf() -> None:
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()
            raise

    job = await deaf.enqueue()
    data = await happened(engine, job, "job.cancel_ignored")
    release.set()
    record = await final(job)

    assert data["reason"] == "took longer than 0.05 s"
    assert record.error is not None
    assert (record.state, record.error.type) == (JobState.FAILED, "AttemptTimeoutError")


async def test_another_process_cancels_within_a_second(tmp_path: Path) -> None:
    """The place that runs the job looks for requests twice a second."""
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    async with make(tmp_path / "jobs.db") as here, make(tmp_path / "jobs.db") as there:
        here.task(name="work")(work)
        job = await here.submit("work", {})
        await began.wait()
        asked_s = time.monotonic()
        await there.cancel(job.id, "from afar")
        record = await final(job)

    assert (record.state, record.cancel_reason) == (JobState.CANCELLED, "from afar")
    assert time.monotonic() - asked_s < 1


# Threads


def until_cancelled() -> None:
    """Look at the token."""
    while not current_job().cancelled:
        time.sleep(0.005)


def raising() -> None:
    """Let the token raise."""
    while True:
        current_job().cancelled.raise_if_cancelled()
        time.sleep(0.005)


def waiting() -> None:
    """Wait for the token."""
    assert current_job().cancelled.wait(SOON_S)


@pytest.mark.parametrize("function", [until_cancelled, raising, waiting])
async def test_a_thread_that_listens_is_cancelled(engine: Engine, function: Callable[[], None]) -> None:
    """However it looks at its token, its job ends cancelled with the reason."""
    began = threading.Event()

    def work() -> None:
        began.set()
        function()

    job = await engine.task(name="work")(work).enqueue()
    await told(began)
    await job.cancel("enough")
    record = await final(job)

    assert (record.state, record.cancel_reason) == (JobState.CANCELLED, "enough")


async def test_a_thread_that_never_looks_and_finishes_has_succeeded(engine: Engine) -> None:
    """It is reported, and its job is running until it ends: its effects are real."""
    began, release = threading.Event(), threading.Event()

    @engine.task
    def deaf() -> str:
        began.set()
        release.wait(SOON_S)
        return "finished"

    job = await deaf.enqueue()
    await told(began)
    await job.cancel("enough")
    await happened(engine, job, "job.cancel_ignored")
    assert (await job.refresh()).state is JobState.RUNNING
    release.set()

    assert await job.result(SOON_S) == "finished"


@pytest.mark.parametrize("function", [until_cancelled, raising, waiting])
async def test_a_thread_that_listens_ends_at_its_timeout(engine: Engine, function: Callable[[], None]) -> None:
    """The token is set then, too; the job fails, and is tried again where it may be."""
    job = await engine.task(name="work", timeout=0.05)(function).enqueue()
    record = await final(job)

    assert record.error is not None
    assert (record.state, record.error.type) == (JobState.FAILED, "AttemptTimeoutError")


async def test_no_more_threads_run_than_allowed_however_many_are_late(engine: Engine) -> None:
    """A thread whose job has failed at its timeout still counts until it ends."""
    release, lock = threading.Event(), threading.Lock()
    now = most = 0

    @engine.task(timeout=0.05)
    def deaf() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        release.wait(SOON_S)
        with lock:
            now -= 1

    jobs = [await deaf.enqueue() for _ in range(6)]
    states = [(await final(job)).state for job in jobs]
    still, until_then = now, most
    release.set()

    assert states == [JobState.FAILED] * 6
    assert (still, until_then) == (2, 2)

    job = await engine.task(name="plain")(plain).enqueue()
    assert await job.result(SOON_S) == "ran"
    assert most == 2


def plain() -> str:
    """A plain function."""
    return "ran"


async def test_a_thread_is_told_of_a_shutdown_and_its_attempt_is_given_back(tmp_path: Path) -> None:
    """After the grace period; the next process runs the job."""
    began = threading.Event()

    def work() -> None:
        began.set()
        until_cancelled()

    async with make(tmp_path / "jobs.db") as first:
        job = await first.task(name="work")(work).enqueue()
        await told(began)

    async with make(tmp_path / "jobs.db") as second:
        record = await second.get(job.id)
        second.task(name="work")(plain)
        ended = await second.wait(job.id, SOON_S)

    assert (record.state, record.attempt) == (JobState.QUEUED, 0)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)


# Before it runs


async def test_a_retry_by_hand_keeps_the_history_of_a_cancelled_job(engine: Engine) -> None:
    """Its events, its attempts and the reason it was cancelled for stay in the log."""
    began = asyncio.Event()
    runs: list[int] = []

    @engine.task
    async def work() -> str:
        runs.append(current_job().attempt)
        if len(runs) == 1:
            began.set()
            await asyncio.Event().wait()
        return "in the end"

    job = await work.enqueue()
    await began.wait()
    await job.cancel("not now")
    await final(job)
    assert await job.retry() is JobState.QUEUED
    assert await job.result(SOON_S) == "in the end"
    events = [(event.type, event.payload()) async for event in job.events()]

    assert runs == [1, 2]
    assert events == [
        ("job.queued", {}),
        ("job.started", {}),
        ("job.cancelled", {"reason": "not now"}),
        ("job.queued", {"reason": "retried"}),
        ("job.started", {}),
        ("job.succeeded", {}),
    ]
