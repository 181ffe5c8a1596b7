"""Privacy by type, seen from outside a running engine: the task sees the value, everybody else a pseudonym."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from asyncbg import AsyncBG, EventModel, Progress, current_job
from asyncbg.errors import JobFailedError
from asyncbg.privacy import Personal
from asyncbg.settings import Settings
from asyncbg.web.schemas import JobOut

ADDRESS, NAME = "ada.canary7f3a@canary7f3a.example", "Ada canary7f3a"


class Person(BaseModel):
    """Somebody."""

    email: Annotated[str, Personal("email")]
    name: Annotated[str, Personal("name")]


class Welcomed(EventModel):
    """Somebody was welcomed."""

    event_type = "person.welcomed"

    email: Annotated[str, Personal("email")]
    text: str


@pytest.fixture
async def bg() -> AsyncIterator[AsyncBG]:
    """An engine in memory."""
    async with AsyncBG(Settings(database_url="sqlite:///:memory:")) as engine:
        yield engine


async def test_a_model_is_the_task_s_own_and_a_pseudonym_to_all_others(bg: AsyncBG) -> None:
    """Arguments, result, events and progress: the handle gives the real result, the job's JSON none of it."""
    seen: list[Person] = []

    @bg.task
    async def welcome(people: list[Person], progress: Progress = Progress()) -> list[Person]:
        seen.extend(people)
        progress.set(1, message=f"welcomed {people[0].name}")
        await current_job().publish(Welcomed(email=people[0].email, text=f"hello {people[0].name}, {people[0].email}"))
        await current_job().publish("person.greeted", {people[0].name: [people[0].email]})
        return people

    job = await welcome.enqueue([Person(email=ADDRESS, name=NAME)])

    assert await job.result(timeout=10) == [{"email": ADDRESS, "name": NAME}]
    assert seen == [Person(email=ADDRESS, name=NAME)]
    told = [event async for event in job.events()]
    shown = JobOut.from_record(await bg.get(job.id))
    dumped = shown.model_dump_json() + repr(told)
    assert ADDRESS not in dumped
    assert NAME not in dumped
    [data] = [event.payload() for event in told if event.type == "person.welcomed"]
    assert re.fullmatch(r"\[email:\w{8}]", data["email"])
    assert re.fullmatch(r"hello \[name:\w{8}], \[email:\w{8}]", data["text"])
    assert shown.result[0]["email"] == data["email"]


async def test_an_error_is_stored_without_the_job_s_personal_values(bg: AsyncBG) -> None:
    """Whatever the task says in its exception."""

    @bg.task
    async def greet(name: Annotated[str, Personal("name")]) -> None:
        raise LookupError(f"there is no {name!r} here")

    job = await greet.enqueue(NAME)

    with pytest.raises(JobFailedError) as caught:
        await job.result(timeout=10)
    assert re.search(r"there is no '\[name:\w{8}]' here", str(caught.value))


async def test_progress_is_clean_while_the_job_runs(bg: AsyncBG) -> None:
    """The freshest progress comes from memory, not from the store."""
    go_on = asyncio.Event()
    reached = asyncio.Event()

    @bg.task
    async def greet(name: Annotated[str, Personal("name")], progress: Progress = Progress()) -> None:
        progress.set(1, message=f"greeting {name}, {ADDRESS}")
        reached.set()
        await go_on.wait()

    job = await greet.enqueue(NAME)
    await reached.wait()

    progress = (await bg.get(job.id)).progress
    go_on.set()

    assert progress is not None
    assert re.fullmatch(r"greeting \[name:\w{8}], \[email:\w{8}]", progress.message)
    await job.result(timeout=10)


async def test_the_reason_of_a_cancel_and_a_tag_are_redacted(bg: AsyncBG) -> None:
    """They are free text that events and jobs carry."""

    @bg.task
    async def greet() -> None: ...

    job = await greet.options(delay=3600, tags=[ADDRESS]).enqueue()

    await job.cancel(f"asked by {ADDRESS}")

    shown: Any = JobOut.from_record(await bg.get(job.id)).model_dump_json()
    told = [event async for event in job.events()]
    assert ADDRESS not in shown + repr(told)
    assert [event.payload()["reason"][:16] for event in told if event.is_final] == ["asked by [email:"]
