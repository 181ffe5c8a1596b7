"""Inside a task: progress, the current job, dependencies, retries."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

import fastapi
import pytest

from asyncbg import AsyncBG, AsyncBGError, Depends, Event, EventType, FinalError, Progress, current_job


async def rows() -> AsyncIterator[str]:
    """Something to work through."""
    for number in range(3):
        yield f"row {number}"


async def test_a_task_tells_how_far_it_is(bg: AsyncBG) -> None:
    """A parameter ``progress: Progress = Progress()`` is filled in; every watcher of the job sees what it reports."""

    watched = asyncio.Event()

    @bg.task
    async def import_rows(progress: Progress = Progress()) -> None:
        await watched.wait()
        async for _row in progress.track(rows(), total=3):
            progress.set(0.5, message="reading")

    job = await import_rows.enqueue()
    reports = []
    async for event in job.events():
        watched.set()
        if event.type == EventType.PROGRESS:
            reports.append(json.loads(event.data or ""))

    assert reports[-1]["total"] == 3
    assert reports[-1]["message"] == "reading"


async def test_a_task_knows_its_job(bg: AsyncBG) -> None:
    """``current_job()`` has the id, which stays the same over all attempts: a good key towards other services."""

    @bg.task
    async def whoami() -> str:
        return current_job().id

    job = await whoami.enqueue()

    assert await job.result(timeout=5) == job.id


async def test_a_task_says_what_it_has_done(bg: AsyncBG) -> None:
    """``publish`` stores an event of the task's own; ``@bg.on`` is called with every event of a type."""
    heard: list[Event] = []

    @bg.on("email.sent")
    async def hear(event: Event) -> None:
        heard.append(event)

    @bg.task
    async def send() -> None:
        await current_job().publish("email.sent", {"parts": 2})

    job = await send.enqueue()
    events = [event async for event in job.events()]
    await bg.stop()

    assert [event.type for event in events] == ["job.queued", "job.started", "email.sent", "job.succeeded"]
    assert [event.job_id for event in heard] == [job.id]


async def test_dependencies_are_there_while_the_task_runs(bg: AsyncBG) -> None:
    """``Depends``, ours or FastAPI's: opened when the job runs, closed when the task is over."""
    steps: list[str] = []

    async def session() -> AsyncIterator[str]:
        steps.append("open")
        yield "session"
        steps.append("close")

    def mailer(session: Annotated[str, fastapi.Depends(session)]) -> str:
        return f"mailer of {session}"

    @bg.task
    async def send(to: str, mailer: str = Depends(mailer)) -> str:
        steps.append("send")
        return f"{mailer} to {to}"

    job = await send.enqueue("Ada")

    assert await job.result(timeout=5) == "mailer of session to Ada"
    assert steps == ["open", "send", "close"]
    assert await send("Bob", mailer="my mailer") == "my mailer to Bob"


class BusyError(Exception):
    """The other side is busy and says when to come back."""

    retry_after_s = 0


class RefusedError(FinalError):
    """The other side will never take it."""


async def test_a_task_is_tried_again(bg: AsyncBG) -> None:
    """``retries`` counts the attempts after the first; an error may say when the next one is due."""

    @bg.task(retries=2)
    async def send() -> int:
        if current_job().attempt < 3:
            raise BusyError
        return current_job().attempt

    assert await (await send.enqueue()).result(timeout=5) == 3


async def test_a_final_error_is_not_tried_again(bg: AsyncBG) -> None:
    """Where another attempt is pointless, raise a FinalError."""
    attempts: list[int] = []

    @bg.task(retries=5)
    async def send() -> None:
        attempts.append(current_job().attempt)
        raise RefusedError("no such mailbox")

    job = await send.enqueue()

    with pytest.raises(AsyncBGError, match="RefusedError: no such mailbox"):
        await job.result(timeout=5)
    assert attempts == [1]


async def test_a_task_may_run_out_of_time(bg: AsyncBG) -> None:
    """``timeout`` is seconds for one attempt."""

    @bg.task(timeout=0.02)
    async def sleep() -> None:
        await asyncio.sleep(60)

    job = await sleep.enqueue()

    with pytest.raises(AsyncBGError, match=r"took longer than 0\.02 s"):
        await job.result(timeout=5)
