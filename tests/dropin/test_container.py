"""The container: what of FastAPI's and Starlette's BackgroundTasks holds for ours, in a request and outside."""

import functools
from collections.abc import Callable
from typing import Any

import fastapi
import pytest
import starlette.background
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.testclient import TestClient

from asyncbg import AsyncBG, BackgroundTasks, Job, JobBackgroundTasks, current_job
from asyncbg.errors import ArgumentsError, NotRunningError
from asyncbg.store.base import JobQuery

ran: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


async def note(text: str, *, times: int = 1) -> None:
    """An async task."""
    ran.append(text * times)


def plain_note(text: str) -> None:
    """A plain task."""
    ran.append(text)


async def fail() -> None:
    """A task that does not succeed."""
    raise LookupError("nothing there")


class Notifier:
    """An object with a method to hand over, and callable itself."""

    async def __call__(self, text: str) -> None:
        """Note it."""
        ran.append(f"called {text}")

    def method(self, text: str) -> None:
        """Note it."""
        ran.append(f"method {text}")


# Outside a request: Starlette's


async def test_outside_a_request_it_runs_what_was_added_in_order() -> None:
    """Calling the container runs everything here and now, sync and async, as Starlette's does."""
    tasks = BackgroundTasks()
    tasks.add_task(note, "a", times=2)
    tasks.add_task(plain_note, "b")
    tasks.add_task(functools.partial(note, "c"))
    tasks.add_task(Notifier(), "d")
    tasks.add_task(Notifier().method, "e")

    await tasks()

    assert ran == ["aa", "b", "c", "called d", "method e"]


async def test_outside_a_request_it_takes_starlette_s_tasks() -> None:
    """``BackgroundTasks(tasks=[…])`` is the constructor people know."""
    tasks = BackgroundTasks(tasks=[BackgroundTask(note, "a"), BackgroundTask(plain_note, "b")])
    tasks.add_task(note, "c")

    await tasks()

    assert ran == ["a", "b", "c"]
    assert [type(task) for task in tasks.tasks] == [BackgroundTask] * 3


async def test_outside_a_request_the_first_error_skips_the_rest() -> None:
    """Isolation is the engine's; without one it is Starlette's loop, which stops and raises."""
    tasks = BackgroundTasks([BackgroundTask(note, "a"), BackgroundTask(fail), BackgroundTask(note, "never")])

    with pytest.raises(LookupError, match="nothing there"):
        await tasks()

    assert ran == ["a"]


async def test_outside_a_request_a_task_and_its_options_run_inline(bg: AsyncBG) -> None:
    """A registered task is an async callable; options of a job mean nothing where there is none."""
    task = bg.task(note)
    tasks = BackgroundTasks()
    tasks.add_task(task, "a")
    tasks.add_task(task.options(delay=3600), "b")

    await tasks()

    assert ran == ["a", "b"]


def test_outside_a_request_a_response_runs_it_after_its_body() -> None:
    """``Response(background=BackgroundTasks(…))`` is an ASGI response like Starlette's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks = BackgroundTasks()
        tasks.add_task(note, "a")
        await Response("hello", background=tasks)(scope, receive, send)

    assert TestClient(app).get("/").text == "hello"
    assert ran == ["a"]


# In a request: jobs


@pytest.fixture
def added(app: FastAPI, serve: Any) -> Callable[[Callable[[JobBackgroundTasks], Any]], Any]:
    """Run something with the container of a request: ``await added(lambda tasks: …)`` gives the response."""

    async def request(body: Callable[[JobBackgroundTasks], Any]) -> Any:
        @app.post("/")
        async def route(background_tasks: BackgroundTasks) -> Any:
            return body(background_tasks)

        http = await serve(app)
        return await http.post("/")

    return request


async def test_in_a_request_it_is_fastapi_s_class(added: Any) -> None:
    """Code that asks ``isinstance`` finds FastAPI's and Starlette's class."""
    answer = await added(
        lambda tasks: (
            isinstance(tasks, fastapi.BackgroundTasks) and isinstance(tasks, starlette.background.BackgroundTasks)
        )
    )

    assert answer.json() is True


async def test_in_a_request_tasks_lists_what_was_added(added: Any) -> None:
    """``.tasks`` holds Starlette's objects: function and arguments as given."""

    def body(tasks: JobBackgroundTasks) -> Any:
        tasks.add_task(note, "a", times=2)
        only = tasks.tasks[0]
        assert isinstance(only, BackgroundTask)
        return [only.func is note, only.args, only.kwargs, only.is_async]

    assert (await added(body)).json() == [True, ["a"], {"times": 2}, True]


async def test_in_a_request_tasks_may_be_changed_by_hand(added: Any, bg: AsyncBG, stored: Any) -> None:
    """What is taken out is no job; what is put in is one: Starlette's tasks, containers and callables too."""

    class Custom(BackgroundTask):
        async def __call__(self) -> None:
            ran.append("custom")

    def body(tasks: JobBackgroundTasks) -> None:
        tasks.add_task(note, "never")
        tasks.tasks.clear()
        tasks.tasks.append(BackgroundTask(note, "a"))
        tasks.tasks.append(fastapi.BackgroundTasks([BackgroundTask(plain_note, "b"), BackgroundTask(note, "c")]))
        tasks.tasks.append(Custom(note, "d"))
        tasks.add_task(functools.partial(note, "e"), times=2)
        tasks.tasks += [tasks.tasks[0], tasks.tasks[-1]]

    await added(body)
    await settled(bg)

    assert ran == ["a", "b", "c", "custom", "ee", "a", "ee"]


async def test_in_a_request_calling_it_commits(app: FastAPI, serve: Any, stored: Any) -> None:
    """``await background_tasks()`` in a route, which would run all in FastAPI, puts the jobs on disk."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> int:
        background_tasks.add_task(note, "a")
        await background_tasks()
        return len(stored())

    http = await serve(app)

    assert (await http.post("/")).json() == 1
    assert len(stored()) == 1


async def test_arguments_that_do_not_fit_raise_at_the_call(app: FastAPI, serve: Any, stored: Any) -> None:
    """The route learns it, not the worker; the error names the argument and never its value."""
    seen: list[ArgumentsError] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        try:
            background_tasks.add_task(note, "a", times="secret words")  # type: ignore[arg-type]
        except ArgumentsError as error:
            seen.append(error)

    http = await serve(app)
    await http.post("/")

    assert [item["loc"] for item in seen[0].errors] == [["times"]]
    assert "secret" not in str(seen[0])
    assert isinstance(seen[0], TypeError)
    assert stored() == []


@pytest.mark.parametrize(
    "default", [None, fastapi.BackgroundTasks(), BackgroundTasks()], ids=["None", "theirs", "ours"]
)
async def test_a_default_changes_nothing(app: FastAPI, serve: Any, stored: Any, default: Any) -> None:
    """``background_tasks: BackgroundTasks = None``, as much older code has it, is injected all the same."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks = default) -> None:
        background_tasks.add_task(note, "a")

    http = await serve(app)

    assert (await http.post("/")).status_code == 200
    assert len(stored()) == 1


async def test_the_openapi_document_does_not_show_it(app: FastAPI, serve: Any) -> None:
    """The parameter is neither a query parameter nor a body."""

    @app.post("/work")
    async def route(background_tasks: BackgroundTasks) -> None: ...

    http = await serve(app)
    operation = (await http.get("/openapi.json")).json()["paths"]["/work"]["post"]

    assert "parameters" not in operation
    assert "requestBody" not in operation


async def test_no_job_runs_where_none_is(added: Any) -> None:
    """``current_job()`` in a route says so, instead of giving another job."""

    def body(tasks: JobBackgroundTasks) -> str:
        with pytest.raises(NotRunningError) as caught:
            current_job()
        return str(caught.value)

    assert "no job is running" in (await added(body)).json()


async def settled(bg: AsyncBG) -> None:
    """Wait until no job is open."""
    for record in await bg.backend.list(JobQuery()):
        await Job(bg._parts.control, record.id, task="", state=record.state, batch="", owner="").result(timeout=5)
