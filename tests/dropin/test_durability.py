"""Which jobs survive a restart, and what is said about those that cannot."""

import asyncio
import functools
import json
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from asyncbg import BackgroundTasks, Job

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


async def note(text: str) -> None:
    """A function of the module."""
    ran.append(text)


class Greeter:
    """Methods of every kind."""

    def method(self, text: str) -> None:
        """A method."""

    @classmethod
    def of_class(cls, text: str) -> None:
        """A class method."""

    @staticmethod
    def static(text: str) -> None:
        """A static method."""


class Loud(Greeter):
    """Inherits the class method, which is another one then."""


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@logged
def decorated(text: str) -> None:
    """Below a decorator."""


undecorated = decorated.__wrapped__  # type: ignore[attr-defined]


def make_closure() -> Callable[[str], None]:
    """Make a function in a function."""
    return lambda text: None


CASES: dict[str, tuple[Any, bool]] = {
    "a function": (note, True),
    "a partial of one": (functools.partial(note), True),
    "a decorated function": (decorated, True),
    "a class method": (Greeter.of_class, True),
    "a static method": (Greeter.static, True),
    "a function of the library": (asyncio.sleep, True),
    "a bound method": (Greeter().method, False),
    "an inherited class method": (Loud.of_class, False),
    "what is below the decorator": (undecorated, False),
    "a lambda": (lambda text: None, False),
    "a closure": (make_closure(), False),
    "an object's builtin": ([].append, False),
}


@pytest.mark.parametrize("case", CASES)
async def test_what_the_module_holds_under_its_name_is_durable(
    app: FastAPI, serve: Any, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """The name must lead back to the very function; else the job says ``durable: false`` and a warning names it."""
    function, is_durable = CASES[case]
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(function, 0 if function is asyncio.sleep else "a"))

    http = await serve(app)
    with caplog.at_level(logging.WARNING, "asyncbg"):
        await http.post("/")
    await jobs[0].result(timeout=5)

    job = (await http.get(f"/bg/jobs/{jobs[0].id}")).json()
    assert job["durable"] is is_durable
    warned = [record.message for record in caplog.records if "not durable" in record.message]
    assert len(warned) == (0 if is_durable else 1)
    assert is_durable or job["task"] in caplog.text


async def test_a_job_that_is_not_durable_is_warned_of_once(
    app: FastAPI, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with every request."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(lambda: None)

    http = await serve(app)
    with caplog.at_level(logging.WARNING, "asyncbg"):
        for _ in range(3):
            await http.post("/")

    assert len([record for record in caplog.records if "not durable" in record.message]) == 1


async def test_a_job_that_is_not_durable_is_tracked_like_any_other(app: FastAPI, serve: Any) -> None:
    """It has a state, a result, events and an error."""
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(lambda: {"answer": 42}))
        jobs.append(background_tasks.add_task(lambda: 1 / 0))

    http = await serve(app)
    await http.post("/")

    assert await jobs[0].result(timeout=5) == {"answer": 42}
    stream = (await http.get(f"/bg/jobs/{jobs[1].id}/events")).text
    assert "event: job.failed" in stream
    assert (await http.get(f"/bg/jobs/{jobs[1].id}")).json()["error"]["type"] == "ZeroDivisionError"


async def test_arguments_are_json_in_the_database(app: FastAPI, serve: Any, database: Path) -> None:
    """A JSON object by name, never a pickle."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "hello")

    http = await serve(app)
    await http.post("/")

    with closing(sqlite3.connect(database)) as connection:
        ((text,),) = connection.execute("SELECT args FROM job").fetchall()
    assert json.loads(text) == {"text": "hello"}


PROGRAM = """
import asyncio, os, sys
from fastapi import FastAPI
from starlette.testclient import TestClient
from asyncbg import AsyncBG, BackgroundTasks

bg = AsyncBG(database_url=sys.argv[1])
app = FastAPI(lifespan=bg.lifespan)

async def write(path: str, text: str) -> None:
    if sys.argv[2] == "die":
        await asyncio.sleep(60)
    with open(path, "a") as file:
        file.write(text)

@app.post("/")
async def route(path: str, background_tasks: BackgroundTasks) -> None:
    background_tasks.add_task(write, path, "one ")
    background_tasks.add_task(write, path, text="two")

with TestClient(app) as client:
    if sys.argv[2] == "die":
        assert client.post("/", params={"path": sys.argv[3]}).status_code == 200
        os._exit(9)
    while not os.path.exists(sys.argv[3]) or open(sys.argv[3]).read() != "one two":
        pass
"""


def test_jobs_that_were_answered_for_survive_the_death_of_the_process(tmp_path: Path) -> None:
    """The process dies right after its response; the next one runs both jobs, in order, unregistered as they are."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    url, out = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "out.txt"

    died = subprocess.run([sys.executable, program, url, "die", out], timeout=30, check=False)
    assert died.returncode == 9
    assert not out.exists()

    subprocess.run([sys.executable, program, url, "live", out], timeout=60, check=True)
    assert out.read_text() == "one two"


async def test_the_http_interface_runs_registered_tasks_only(app: FastAPI, serve: Any) -> None:
    """A function that was never registered cannot be asked for by its name, loaded as it may be."""
    http = await serve(app)

    answer = await http.post("/bg/jobs", json={"task": f"{note.__module__}:note", "args": {"text": "a"}})

    assert answer.status_code == 404
    assert ran == []
