"""The tour begins where FastAPI's users are: background tasks of a route."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from asyncbg import AsyncBG, BackgroundTasks


@pytest.fixture
def bg(tmp_path: Path) -> AsyncBG:
    """An engine; here the app starts it."""
    return AsyncBG(database_url=f"sqlite:///{tmp_path}/asyncbg.db", data_dir=tmp_path)


async def send_welcome(email: str) -> str:
    """A function like any other."""
    return "sent"


def test_a_route_adds_a_job_and_answers(bg: AsyncBG) -> None:
    """Three lines make background tasks jobs: the import, the lifespan, the router. The routes stay as they are."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")

    @app.post("/signup")
    async def signup(email: str, background_tasks: BackgroundTasks) -> dict[str, str]:
        job = background_tasks.add_task(send_welcome, email)
        return {"job": job.id}

    with TestClient(app) as client:
        job_id = client.post("/signup", params={"email": "ada.canary7f3a@canary7f3a.example"}).json()["job"]
        job = client.get(f"/bg/jobs/{job_id}", params={"wait": 5}).json()

    assert (job["state"], job["result"]) == ("succeeded", "sent")


def test_a_failed_job_does_not_hurt_the_next_one(bg: AsyncBG) -> None:
    """Jobs of one request run in the order added; an error is written on its job and goes no further."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")

    def charge(amount: int) -> None:
        raise ValueError("the card is expired")

    @app.post("/order")
    async def order(background_tasks: BackgroundTasks) -> list[str]:
        first = background_tasks.add_task(charge, 5)
        second = background_tasks.add_task(send_welcome, "ada.canary7f3a@canary7f3a.example")
        return [first.id, second.id]

    with TestClient(app) as client:
        jobs = [client.get(f"/bg/jobs/{job_id}?wait=5").json() for job_id in client.post("/order").json()]

    assert [job["state"] for job in jobs] == ["failed", "succeeded"]
    assert jobs[0]["error"] == {"type": "ValueError", "message": "the card is expired"}
