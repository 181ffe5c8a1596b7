"""``app.dependency_overrides`` reach what a task depends on: in its jobs and where it is awaited in a route."""

from collections.abc import Callable
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import FastAPI, Request

import asyncbg
from asyncbg import AsyncBG, BackgroundTasks
from tests.dropin.conftest import jobs, ran


def gateway() -> str:
    """What tests put another in the place of."""
    return "the real gateway"


def fake() -> str:
    """The other."""
    return "a fake"


class Mailer:
    """A class as a provider."""

    name = "the real mailer"


class FakeMailer:
    """The other."""

    name = "a fake"


def nested(gateway: Annotated[str, fastapi.Depends(gateway)]) -> str:
    """A provider that depends on what is overridden."""
    return gateway


def caller(request: Request) -> str:
    """What only a request can give."""
    return str(request.url)


async def by_default(it: str = fastapi.Depends(gateway)) -> None:
    """FastAPI's marker as the default."""
    ran.append(it)


async def annotated(it: Annotated[str, fastapi.Depends(gateway)]) -> None:
    """FastAPI's marker in the annotation."""
    ran.append(it)


async def ours(it: str = asyncbg.Depends(gateway)) -> None:
    """Our marker."""
    ran.append(it)


async def ours_annotated(it: Annotated[str, asyncbg.Depends(gateway)]) -> None:
    """Our marker in the annotation."""
    ran.append(it)


async def below(it: str = asyncbg.Depends(nested)) -> None:
    """A provider of a provider."""
    ran.append(it)


async def by_class(it: Annotated[Mailer, fastapi.Depends()]) -> None:
    """A class that provides itself."""
    ran.append(it.name)


def in_a_thread(it: str = fastapi.Depends(gateway)) -> None:
    """A plain task."""
    ran.append(it)


async def of_a_request(it: str = fastapi.Depends(caller)) -> None:
    """Nothing but an override can supply it."""
    ran.append(it)


TASKS = [by_default, annotated, ours, ours_annotated, below, by_class, in_a_thread, of_a_request]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("way", ["job", "inline"])
async def test_overrides_reach_a_task_in_every_form(
    app: FastAPI, bg: AsyncBG, serve: Any, task: Callable[..., Any], way: str
) -> None:
    """They are looked up when the task runs, also where the test assigns another dictionary."""
    registered = bg.task(task)

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        if way == "inline":
            await registered()
        else:
            jobs.append(background_tasks.add_task(registered))

    http = await serve(app)
    app.dependency_overrides = {gateway: fake, Mailer: FakeMailer, caller: fake}
    assert (await http.post("/")).status_code == 200
    for job in jobs:
        await job.result(timeout=5)

    assert ran == ["a fake"]


async def test_without_an_override_the_provider_itself_is_called(app: FastAPI, serve: Any) -> None:
    """Also after the test has cleared it."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(by_default))

    http = await serve(app)
    app.dependency_overrides[gateway] = fake
    app.dependency_overrides.clear()
    await http.post("/")
    await jobs[0].result(timeout=5)

    assert ran == ["the real gateway"]
