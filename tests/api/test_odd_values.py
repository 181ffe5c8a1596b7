"""Whatever a task or its caller says, every page, list, stream and command still answers, and shows what was taken."""

import asyncio
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncbg import AsyncBG, Job, Progress, current_job
from asyncbg.cli import run
from asyncbg.errors import AsyncBGError

SOON_S = 10
TEXT = st.text(st.characters(exclude_categories=[]), max_size=20) | st.sampled_from(
    ["", "\0", "\ud800", "\udcff.csv", "\x1b[2J", "a\nb", "a\u2028b", "\U0001f600", "x" * 900_000]
)
NUMBER: st.SearchStrategy[Any] = st.sampled_from(
    [None, "x", 0, -1, 1.5, 10**30, -(10**30), 10**400, float("nan"), float("inf"), float("-inf"), True, [], 1e308]
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | NUMBER | st.binary(max_size=5) | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class Said:
    """What one job is told, and what it says."""

    current: Any = 1
    total: Any = None
    message: Any = ""
    unit: Any = ""
    data: Any = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    word: Any = ""
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


SAID = st.builds(
    Said,
    current=NUMBER,
    total=NUMBER,
    message=TEXT | NUMBER,
    unit=TEXT,
    data=st.dictionaries(TEXT, DATA, max_size=3),
    result=DATA,
    error=st.none() | TEXT,
    word=DATA,
    options=st.fixed_dictionaries(
        {},
        optional={
            "tags": st.lists(TEXT, max_size=2),
            "idempotency_key": TEXT,
            "owner": TEXT,
            "priority": NUMBER,
            "delay": st.sampled_from([0, -1, 1e15, float("nan"), float("inf")]),
        },
    ),
    reason=TEXT,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@example(Said(current="x", total="x", data={"a": float("nan")}, result=float("nan"), reason="\ud800"))
@example(Said(message="\udcff", unit="\0", result="\udcff", error="\ud800", options={"tags": ["a"]}))
@example(Said(current=10**30, total=10**400, data={"size": 10**30}, result=10**30, word="x" * 900_000))
@example(Said(result=[[["\ud800"]]], data={"\ud800": "\udfff"}, options={"tags": ["\ud800"], "owner": "\x1b"}))
@given(SAID)
def test_nothing_that_is_said_hides_a_job(said: Said) -> None:
    """Every answer is well-formed, for this job and for all that stand beside it in a list."""
    with tempfile.TemporaryDirectory() as directory:
        accepted = asyncio.run(submit_and_look(Path(directory), said))
        commands(Path(directory), accepted)


async def submit_and_look(directory: Path, said: Said) -> list[str]:
    """Submit jobs that say it, and look at them in every way there is; the ids of those that were accepted."""
    bg = AsyncBG(database_url=f"sqlite:///{directory}/jobs.db", data_dir=directory)

    @bg.task(name="speak")
    async def speak(word: Any = None, progress: Progress = Progress()) -> Any:
        await spoken(said, progress)
        if said.error is not None:
            raise ValueError(said.error)
        return said.result

    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    async with app.router.lifespan_context(app):
        jobs = [await speak.enqueue()]
        waits = await speak.options(delay=1_000).enqueue()
        await attempt(lambda: bg.cancel(waits.id, said.reason), jobs)
        await attempt(lambda: speak.options(**said.options).enqueue(), jobs)
        await attempt(lambda: speak.enqueue(said.word), jobs)
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await look(client, [waits, *jobs])
        return [job.id for job in (waits, *jobs)]


async def spoken(said: Said, progress: Any) -> None:
    """Say it, as far as it is taken: what is refused is refused at the call."""
    calls: list[Callable[[], None]] = [
        lambda: progress.set(said.current, total=said.total, message=said.message, unit=said.unit),
        lambda: progress.advance(said.current),
    ]
    for call in calls:
        with suppress(TypeError, ValueError, OverflowError):
            call()
    with suppress(TypeError, ValueError):
        await current_job().publish("it.said", said.data)


async def attempt(call: Callable[[], Any], jobs: list[Job]) -> None:
    """A call that is refused by an error of ours, or makes a job."""
    try:
        made = await call()
    except AsyncBGError:
        return
    if isinstance(made, Job):
        jobs.append(made)


async def look(client: httpx.AsyncClient, jobs: list[Job]) -> None:
    """Ask every route, and find each job in each."""
    for job in jobs:
        shown = (await answered(client, f"/jobs/{job.id}?wait={SOON_S}")).json()
        assert shown["finished_at"], shown
        if shown["state"] == "failed":
            assert shown["error"]["type"] in {"ValueError", "ResultError"}
        stream = await answered(client, f"/jobs/{job.id}/events?follow=false")
        types = [strict(line[5:])["type"] for line in stream.text.split("\n") if line.startswith("data:")]
        assert types[-1] == f"job.{shown['state']}"
        for tag in shown["tags"]:
            assert job.id in ids(await answered(client, "/jobs", tag=tag))
    assert ids(await answered(client, "/jobs")) == {job.id for job in jobs}
    everything = await answered(client, "/events?follow=false")
    assert all(strict(line[5:]) for line in everything.text.split("\n") if line.startswith("data:"))
    for path in ("/metrics", "/health/ready", "/health/live", "/openapi.json", "/"):
        await answered(client, path)


async def answered(client: httpx.AsyncClient, path: str, **query: str) -> httpx.Response:
    """A 200, whose text is UTF-8 and, where it says so, JSON."""
    answer = await client.get(path, params=query or None)
    assert answer.status_code == 200, (path, answer.text[:300])
    answer.content.decode("utf-8")
    if "json" in answer.headers["content-type"]:
        strict(answer.text)
    return answer


def strict(text: str) -> Any:
    """JSON as a browser reads it."""
    return json.loads(text, parse_constant=pytest.fail)


def ids(page: httpx.Response) -> set[str]:
    """The jobs of a page."""
    return {job["id"] for job in page.json()["items"]}


def commands(directory: Path, accepted: list[str]) -> None:
    """Ask the command line, beside no service, for people and for programs."""
    listed = strict(command(directory, "jobs", "list", "--json"))["items"]
    assert {job["id"] for job in listed} == set(accepted)
    command(directory, "jobs", "list")
    for line in command(directory, "events", "tail", "--no-follow", "--json").splitlines():
        strict(line)
    command(directory, "events", "tail", "--no-follow")
    for job_id in accepted:
        assert strict(command(directory, "jobs", "show", job_id, "--json"))["id"] == job_id
        command(directory, "jobs", "show", job_id)


def command(directory: Path, *arguments: str) -> str:
    """What a command prints, as a terminal of UTF-8 takes it."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(directory)
        patch.setenv("ASYNCBG_DATABASE_URL", f"sqlite:///{directory}{os.sep}jobs.db")
        patch.setattr(sys, "stdin", io.StringIO())
        code = run(arguments)
    text = out.getvalue()
    assert code == 0, (arguments, text[:300])
    text.encode("utf-8")
    assert "\x1b" not in text
    return text
