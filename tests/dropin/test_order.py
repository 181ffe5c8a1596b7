"""The order of a request's jobs, and what one that fails means for the rest."""

import asyncio
import threading
from typing import Any

import pytest
from fastapi import FastAPI

from asyncbg import AsyncBG, BackgroundTasks, Job, JobState
from asyncbg.errors import JobCancelledError, JobFailedError

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


async def slow(text: str) -> None:
    """Give others every chance to overtake."""
    for _ in range(20):
        await asyncio.sleep(0)
    ran.append(text)


async def quick(text: str) -> None:
    """Done at once."""
    ran.append(text)


def threaded(text: str) -> None:
    """Done in a thread."""
    ran.append(text)


async def fail() -> None:
    """Never done."""
    ran.append("fail")
    raise ConnectionError("the server is down")


async def test_the_jobs_of_a_request_run_one_after_another(app: FastAPI, serve: Any) -> None:
    """Each waits for the one before it, however quick it would be, coroutine or thread."""
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> list[str]:
        for add, text in [(slow, "1"), (quick, "2"), (threaded, "3"), (slow, "4"), (quick, "5")]:
            jobs.append(background_tasks.add_task(add, text))
        return [job.state for job in jobs]

    http = await serve(app)
    await http.post("/")

    await jobs[-1].result(timeout=5)
    assert ran == ["1", "2", "3", "4", "5"]
    assert {job.batch for job in jobs} == {jobs[0].id}
    assert [job.state for job in jobs[1:4]] == [JobState.WAITING] * 3


async def test_the_jobs_of_two_requests_do_not_wait_for_each_other(app: FastAPI, serve: Any) -> None:
    """A batch is one request's: what another request added runs beside it."""
    opened = asyncio.Event()
    jobs: list[Job] = []

    @app.post("/{kind}")
    async def route(kind: str, background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(opened.wait if kind == "first" else opened.set))

    http = await serve(app)
    await http.post("/first")
    await http.post("/second")

    await asyncio.gather(*(job.result(timeout=5) for job in jobs))


async def test_a_failed_job_does_not_stop_the_ones_after_it(app: FastAPI, serve: Any) -> None:
    """Starlette stops at the first error and closes the connection; here it stays with its job."""
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> str:
        jobs.append(background_tasks.add_task(fail))
        jobs.append(background_tasks.add_task(quick, "after"))
        return "fine"

    http = await serve(app)
    answer = await http.post("/")

    assert (answer.status_code, answer.json()) == (200, "fine")
    with pytest.raises(JobFailedError, match="ConnectionError: the server is down"):
        await jobs[0].result(timeout=5)
    await jobs[1].result(timeout=5)
    assert ran == ["fail", "after"]


async def test_stop_on_failure_cancels_the_rest(app: FastAPI, serve: Any) -> None:
    """``background_tasks.stop_on_failure = True``: those after the failed one never run and end as cancelled."""
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.stop_on_failure = True
        jobs.append(background_tasks.add_task(quick, "before"))
        jobs.append(background_tasks.add_task(fail))
        jobs.append(background_tasks.add_task(quick, "never"))
        jobs.append(background_tasks.add_task(quick, "never either"))

    http = await serve(app)
    await http.post("/")

    for job in jobs[2:]:
        with pytest.raises(JobCancelledError):
            await job.result(timeout=5)
    assert ran == ["before", "fail"]
    assert [(await job.refresh()).state for job in jobs] == ["succeeded", "failed", "cancelled", "cancelled"]


async def test_a_plain_def_runs_in_a_thread_of_our_own(app: FastAPI, serve: Any) -> None:
    """Neither on the event loop nor in the threads that serve ``def`` routes; two requests' run side by side."""
    barrier = threading.Barrier(2, timeout=5)
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(barrier.wait))

    http = await serve(app)
    await http.post("/")
    await http.post("/")

    await asyncio.gather(*(job.result(timeout=5) for job in jobs))


async def test_a_job_s_task_sees_the_context_of_no_request(app: FastAPI, bg: AsyncBG, serve: Any) -> None:
    """Context variables of the request are not there in its jobs: a job may run in another life of the process."""
    import contextvars

    user = contextvars.ContextVar("user", default="nobody")
    jobs: list[Job] = []

    async def who() -> str:
        return user.get()

    def who_in_a_thread() -> str:
        return user.get()

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        user.set("ada")
        jobs.append(background_tasks.add_task(who))
        jobs.append(background_tasks.add_task(who_in_a_thread))

    http = await serve(app)
    await http.post("/")

    assert [await job.result(timeout=5) for job in jobs] == ["nobody", "nobody"]
