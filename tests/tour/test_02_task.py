"""A registered task has a name of its own, typed arguments and options."""

import pytest

from asyncbg import AsyncBG, AsyncBGError, JobState


async def test_a_task_is_a_decorated_function(bg: AsyncBG) -> None:
    """``await task.enqueue(…)`` returns when the job is on disk; ``result`` waits for it."""

    @bg.task
    async def add(a: int, b: int) -> int:
        return a + b

    job = await add.enqueue(1, b=2)

    assert await job.result(timeout=5) == 3


async def test_a_task_can_be_called(bg: AsyncBG) -> None:
    """``await task(…)`` runs it here and now, with no job: in another task, in a script, in a unit test."""

    @bg.task
    async def add(a: int, b: int) -> int:
        return a + b

    assert await add(1, 2) == 3


async def test_a_plain_function_is_a_task_too(bg: AsyncBG) -> None:
    """It runs in a worker thread of asyncbg's own, so it may block."""

    @bg.task
    def add(a: int, b: int) -> int:
        return a + b

    assert await (await add.enqueue(1, 2)).result(timeout=5) == 3
    assert await add(1, 2) == 3


async def test_arguments_are_checked_where_the_job_is_made(bg: AsyncBG) -> None:
    """The caller gets the error, not the worker."""

    @bg.task
    async def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(AsyncBGError, match="b: Input should be a valid integer"):
        await add.enqueue(1, b="two")  # type: ignore[arg-type]


async def test_a_job_can_be_due_later(bg: AsyncBG) -> None:
    """``options`` are those of one job: ``delay``, ``at``, ``priority``, ``tags``, ``idempotency_key``."""

    @bg.task(name="reports.build")
    async def build() -> str:
        return "built"

    job = await build.options(delay=3600, tags=["monthly"]).enqueue()
    assert (job.task, job.state) == ("reports.build", JobState.SCHEDULED)

    soon = await build.options(delay=0.05).enqueue()
    assert await soon.result(timeout=5) == "built"


async def test_a_key_makes_asking_twice_harmless(bg: AsyncBG) -> None:
    """The same idempotency key gives the same job."""

    @bg.task
    async def charge(amount: int) -> int:
        return amount

    first = await charge.options(idempotency_key="order-7").enqueue(5)
    second = await charge.options(idempotency_key="order-7").enqueue(5)

    assert (second.id, second.created) == (first.id, False)
