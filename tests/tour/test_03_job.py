"""A job is a handle: its state, its result, its events, and how to steer it."""

import asyncio

import pytest

from asyncbg import AsyncBG, AsyncBGError, EventType, JobState


async def test_a_job_has_a_state(bg: AsyncBG) -> None:
    """As of the last look; ``refresh`` looks again."""
    gate, reached = asyncio.Event(), asyncio.Event()

    @bg.task
    async def wait_at_gate() -> None:
        reached.set()
        await gate.wait()

    job = await wait_at_gate.enqueue()
    states = [job.state]
    await reached.wait()
    states.append((await job.refresh()).state)
    gate.set()
    await job.result(timeout=5)
    states.append(job.state)

    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert job.state.is_final


async def test_a_result_may_be_an_error(bg: AsyncBG) -> None:
    """Waiting for the result of a failed job raises an error that tells the job's."""

    @bg.task
    async def fail() -> None:
        raise LookupError("nothing there")

    job = await fail.enqueue()

    with pytest.raises(AsyncBGError, match=f"job {job.id} failed: LookupError: nothing there"):
        await job.result(timeout=5)


async def test_waiting_may_end_before_the_job(bg: AsyncBG) -> None:
    """``timeout`` bounds the waiting, not the job: the error is a TimeoutError, and the job goes on."""
    gate = asyncio.Event()

    @bg.task
    async def wait_at_gate() -> str:
        await gate.wait()
        return "through"

    job = await wait_at_gate.enqueue()
    with pytest.raises(TimeoutError):
        await job.result(timeout=0.01)

    gate.set()
    assert await job.result(timeout=5) == "through"


async def test_a_job_tells_its_story(bg: AsyncBG) -> None:
    """``events`` goes through all of them, from the first to the final one, waiting for those to come."""

    @bg.task
    async def greet(name: str) -> str:
        return f"hello {name}"

    job = await greet.enqueue("Ada")

    assert [event.type async for event in job.events()] == [EventType.QUEUED, EventType.STARTED, EventType.SUCCEEDED]


async def test_a_job_can_be_cancelled(bg: AsyncBG) -> None:
    """The task gets ``asyncio.CancelledError`` where it waits, and may clean up."""
    reached = asyncio.Event()
    cleaned: list[bool] = []

    @bg.task
    async def wait_for_ever() -> None:
        try:
            reached.set()
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    job = await wait_for_ever.enqueue()
    await reached.wait()
    await job.cancel("changed my mind")

    with pytest.raises(AsyncBGError, match="cancelled: changed my mind"):
        await job.result(timeout=5)
    assert cleaned == [True]


async def test_a_cancelled_task_may_still_finish(bg: AsyncBG) -> None:
    """Cancelling asks. A task that catches the request and returns has succeeded, and its job says so."""
    reached = asyncio.Event()

    @bg.task
    async def stubborn() -> str:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    job = await stubborn.enqueue()
    await reached.wait()
    await job.cancel()

    assert await job.result(timeout=5) == "done all the same"


async def test_a_final_job_can_be_run_again(bg: AsyncBG) -> None:
    """``retry`` queues it once more, under the same id; a job that is not final cannot be retried."""
    answers = [ConnectionError("the server is down"), "sent"]

    @bg.task
    async def send() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    job = await send.enqueue()
    with pytest.raises(AsyncBGError):
        await job.result(timeout=5)
    await job.retry()

    assert await job.result(timeout=5) == "sent"

    later = await send.options(delay=3600).enqueue()
    with pytest.raises(AsyncBGError, match="it is scheduled"):
        await later.retry()
