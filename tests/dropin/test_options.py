"""Registered tasks and their options in ``add_task``."""

import functools
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from asyncbg import AsyncBG, BackgroundTasks, JobState
from asyncbg.errors import ArgumentsError
from tests.dropin.conftest import jobs, ran


async def test_a_registered_task_keeps_its_name_and_its_retries(app: FastAPI, bg: AsyncBG, serve: Any) -> None:
    """Handing over a task is like handing over a function, with what ``@bg.task`` says of it."""

    @bg.task(name="mail.send", retries=4, queue="mail", priority=7)
    async def send(to: str, *, subject: str = "") -> str:
        ran.append(f"{subject} to {to}")
        return "sent"

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(send, "Ada", subject="hello"))
        jobs.append(background_tasks.add_task(functools.partial(send, subject="partly"), "Bob"))
        with pytest.raises(ArgumentsError):
            background_tasks.add_task(send, "Ada", colour="red")  # type: ignore[call-arg]

    http = await serve(app)
    assert (await http.post("/")).status_code == 200
    assert await jobs[1].result(timeout=5) == "sent"

    job = (await http.get(f"/bg/jobs/{jobs[0].id}")).json()
    assert {name: job[name] for name in ("task", "queue", "priority", "max_attempts", "durable")} == {
        "task": "mail.send", "queue": "mail", "priority": 7, "max_attempts": 5, "durable": True,
    }  # fmt: skip
    assert ran == ["hello to Ada", "partly to Bob"]


async def test_options_are_those_of_one_job(app: FastAPI, bg: AsyncBG, serve: Any) -> None:
    """``add_task(task.options(…), …)``: delay, a time, priority, tags."""

    @bg.task
    async def send(to: str) -> None:
        ran.append(to)

    @app.post("/{which}")
    async def route(which: str, background_tasks: BackgroundTasks) -> None:
        call = {
            "delay": send.options(delay=timedelta(hours=1)),
            "at": send.options(at=datetime.now(UTC) + timedelta(days=1)),
            "tags": send.options(priority=9, tags=["a", "b"], owner="ada"),
        }[which]
        jobs.append(background_tasks.add_task(call, "Ada"))

    http = await serve(app)
    for which in ("delay", "at", "tags"):
        await http.post(f"/{which}")

    assert [job.state for job in jobs[:2]] == [JobState.SCHEDULED] * 2
    await jobs[2].result(timeout=5)
    shown = (await http.get(f"/bg/jobs/{jobs[2].id}")).json()
    assert (shown["priority"], shown["tags"]) == (9, ["a", "b"])
    assert ran == ["Ada"]


async def test_a_known_idempotency_key_gives_the_earlier_job(app: FastAPI, bg: AsyncBG, serve: Any) -> None:
    """Only the commit knows of it, so the handle changes there: ``await background_tasks.commit()`` before using it."""

    @bg.task
    async def charge(order: int) -> int:
        return order

    @app.post("/orders/{order}")
    async def route(order: int, background_tasks: BackgroundTasks) -> dict[str, Any]:
        job = background_tasks.add_task(charge.options(idempotency_key=f"order-{order}"), order)
        await background_tasks.commit()
        return {"job": job.id, "created": job.created}

    http = await serve(app)
    first, second = [(await http.post("/orders/7")).json() for _ in range(2)]

    assert first["created"] is True
    assert second == {"job": first["job"], "created": False}


async def test_a_request_that_is_sent_again_is_the_same_jobs(app: FastAPI, bg: AsyncBG, serve: Any) -> None:
    """``background_tasks.idempotency_key``: over several commits, for each owner, and for nothing but the same jobs."""

    @bg.task
    async def charge(order: int, at: str = "") -> int:
        return order

    @app.post("/orders/{order}")
    async def route(order: int, background_tasks: BackgroundTasks, owner: str = "ada", at: str = "") -> list[str]:
        background_tasks.owner, background_tasks.idempotency_key = owner, "k"
        background_tasks.fingerprint = str(order) if at else None
        added = [background_tasks.add_task(charge, order, at) for _ in range(2)]
        await background_tasks.commit()
        added.append(background_tasks.add_task(charge.options(idempotency_key="own"), order, at))
        await background_tasks.commit()
        return [job.id for job in added]

    @app.post("/later")
    async def later(background_tasks: BackgroundTasks) -> None:
        background_tasks.owner, background_tasks.idempotency_key = "ada", "k"
        background_tasks.add_task(charge, 8)

    http = await serve(app)
    first, second = [(await http.post("/orders/7")).json() for _ in range(2)]
    other = (await http.post("/orders/7?owner=bob&at=1")).json()

    assert first == second
    assert len(set(first)) == 3
    assert not set(first) & set(other)
    assert (await http.post("/orders/7?owner=bob&at=2")).json() == other
    assert (await http.post("/later")).status_code == 422
    assert len((await http.get("/bg/jobs")).json()["items"]) == 6


MODULE = """
from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

from asyncbg import AsyncBG, BackgroundTasks

if TYPE_CHECKING:
    from decimal import Decimal

bg = AsyncBG()
app = FastAPI(lifespan=bg.lifespan)
app.include_router(bg.router, prefix="/bg")


async def send(to: str, price: Decimal, times: int) -> list[object]:
    return [to, price, times]


@app.post("/")
async def route(background_tasks: BackgroundTasks) -> str:
    return background_tasks.add_task(send, "Ada", 1.5, times="2").id
"""


def test_a_module_with_postponed_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``from __future__ import annotations`` and names for type checkers only are no obstacle."""
    (tmp_path / "postponed_app.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import postponed_app  # type: ignore[import-not-found]

    with TestClient(postponed_app.app) as client:
        job = client.get(f"/bg/jobs/{client.post('/').json()}?wait=5").json()

    assert (job["result"], job["durable"]) == (["Ada", 1.5, 2], True)
    del sys.modules["postponed_app"]
