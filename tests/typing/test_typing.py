"""What a type checker knows of tasks and jobs; mypy reads this file, and the test runs it.

Each ``type: ignore`` proves an error: mypy complains of one that is not needed.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, assert_type

import fastapi
from fastapi import FastAPI

from asyncbg import AsyncBG, BackgroundTasks, Depends, Event, Job, JobBackgroundTasks, JobState, Progress, Task

bg = AsyncBG(database_url="sqlite:///:memory:")


@bg.task
async def greet(name: str, times: int = 1) -> str:
    """An async task."""
    return name * times


@bg.task(retries=3, timeout=5)
async def with_options(name: str) -> list[str]:
    """An async task with options."""
    return [name]


@bg.task
def plain(number: int) -> float:
    """A plain task."""
    return number / 2


@bg.task(name="plain.options")
def plain_with_options(number: int) -> float:
    """A plain task with options."""
    return number / 2


@bg.task
async def inside(mailer: str = Depends(lambda: "mailer"), progress: Progress = Progress()) -> None:
    """A task with what it is supplied with."""


def unregistered(number: int, *, text: str = "") -> None:
    """Any function."""


class WithMethod:
    """Any object."""

    async def method(self, number: int) -> None:
        """A method."""


async def tasks() -> None:
    """A task is called and enqueued with its function's own parameters."""
    assert_type(await greet("Ada"), str)
    assert_type(await greet("Ada", times=2), str)
    assert_type(await with_options("Ada"), list[str])
    assert_type(await plain(1), float)
    assert_type(await plain_with_options(number=1), float)
    assert_type(await greet.enqueue("Ada", 2), Job)
    assert_type(await greet.options(delay=5).enqueue("Ada"), Job)
    assert_type(await inside.enqueue(), Job)
    assert_type(greet.name, str)

    await greet(1)  # type: ignore[arg-type]
    await greet.enqueue()  # type: ignore[call-arg]
    await greet.enqueue("Ada", "twice")  # type: ignore[arg-type]
    await with_options.options(priority=1).enqueue(1)  # type: ignore[arg-type]
    await greet.options(dealy=1).enqueue("Ada")  # type: ignore[call-arg]

    function: Callable[[str, int], Coroutine[Any, Any, str]] = greet
    task: Task[[int], float] = plain
    assert_type(task, Task[[int], float])
    assert_type(await function("Ada", 1), str)


async def jobs(job: Job) -> None:
    """A job is a handle."""
    assert_type(job.id, str)
    assert_type(job.state, JobState)
    assert_type(await job.refresh(), Job)
    assert_type(await job.cancel("no longer wanted"), JobState)
    assert_type(job.events(), AsyncIterator[Event])


async def route(background_tasks: BackgroundTasks) -> None:
    """The container takes functions and tasks with their own parameters and gives jobs."""
    assert_type(background_tasks, JobBackgroundTasks)
    assert_type(background_tasks.add_task(unregistered, 1, text="a"), Job)
    assert_type(background_tasks.add_task(greet, "Ada", times=2), Job)
    assert_type(background_tasks.add_task(greet.options(delay=5), "Ada"), Job)
    assert_type(background_tasks.add_task(WithMethod().method, 1), Job)
    assert_type(background_tasks.add_task(print, "a", "b", sep=""), Job)

    background_tasks.add_task(unregistered, "one")  # type: ignore[arg-type]
    background_tasks.add_task(greet)  # type: ignore[call-arg]
    background_tasks.add_task(greet.options(delay=5), 1)  # type: ignore[arg-type]
    background_tasks.add_task(plain, 1, 2)  # type: ignore[call-arg]

    theirs: fastapi.BackgroundTasks = background_tasks
    background_tasks.stop_on_failure = True
    await theirs()


def lifespans() -> None:
    """The lifespan fits FastAPI's parameter, bare and around the user's own."""

    def own(app: FastAPI) -> AbstractAsyncContextManager[dict[str, int]]:
        raise NotImplementedError

    async def generator(app: FastAPI) -> AsyncIterator[None]:
        yield

    FastAPI(lifespan=bg.lifespan)
    FastAPI(lifespan=bg.lifespan(own))
    FastAPI(lifespan=bg.lifespan(generator))
    FastAPI(lifespan=bg.lifespan(bg.lifespan))


def test_what_mypy_reads_can_be_run() -> None:
    """The lifespans are made; the rest is for the type checker only."""
    lifespans()
    assert [type(task) for task in (greet, with_options, plain)] == [Task] * 3
