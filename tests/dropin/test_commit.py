"""When the jobs of a request are committed: after the route returned, before the response starts, or never."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.testclient import TestClient

from asyncbg import AsyncBG, BackgroundTasks
from asyncbg.errors import OverloadedError
from tests.dropin.conftest import note, ran

Stored = Callable[[], list[str]]


def shown(name: Callable[..., Any]) -> str:
    """The name a function's jobs are stored under."""
    return f"{name.__module__}:{name.__qualname__}"


async def test_a_job_is_on_disk_before_the_response_starts(app: FastAPI, stored: Stored, call: Any) -> None:
    """Another process that opens the database when the first byte goes out finds the job."""
    seen: dict[str, list[str]] = {}

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "a")
        seen["in the route"] = stored()

    async with app.router.lifespan_context(app):
        await call(app, "/", lambda message: seen.setdefault(message["type"], stored()))

    assert seen["in the route"] == []
    assert seen["http.response.start"] == [shown(note)]


async def test_a_job_is_known_by_its_id_at_once(app: FastAPI, serve: Any) -> None:
    """``add_task`` returns the job; its id is good in the response's body."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> dict[str, str]:
        job = background_tasks.add_task(note, "a")
        return {"job": job.id, "batch": job.batch, "state": job.state}

    http = await serve(app)
    body = (await http.post("/")).json()

    job = (await http.get(f"/bg/jobs/{body['job']}", params={"wait": 5})).json()
    assert (job["state"], job["batch"], body["state"]) == ("succeeded", body["job"], "queued")


async def test_a_plain_def_route_adds_jobs_too(app: FastAPI, bg: AsyncBG, serve: Any) -> None:
    """A ``def`` route runs in a thread; what it adds is committed alike."""
    jobs = []

    @app.post("/")
    def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(note, "from a thread"))

    http = await serve(app)
    await http.post("/")

    await jobs[0].result(timeout=5)
    assert ran == ["from a thread"]


@pytest.mark.parametrize("error", [HTTPException(418), RuntimeError("broken")], ids=["HTTPException", "RuntimeError"])
async def test_a_route_that_raises_enqueues_nothing(app: FastAPI, serve: Any, stored: Stored, error: Exception) -> None:
    """Neither an HTTPException nor an unforeseen error leaves a job behind."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "a")
        raise error

    http = await serve(app)

    assert (await http.post("/")).status_code == getattr(error, "status_code", 500)
    assert stored() == []


async def test_a_request_that_is_not_valid_enqueues_nothing(app: FastAPI, serve: Any, stored: Stored) -> None:
    """What a dependency added is dropped where another parameter makes the request a 422."""

    def audit(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "audit")

    @app.post("/", dependencies=[Depends(audit)])
    async def route(number: int) -> None: ...

    http = await serve(app)

    assert (await http.post("/?number=many")).status_code == 422
    assert stored() == []


async def test_a_dependency_that_fails_before_the_response_enqueues_nothing(
    app: FastAPI, serve: Any, stored: Stored
) -> None:
    """A session that cannot commit after the route (scope "function", declared after the tasks) drops the jobs."""

    async def session() -> AsyncIterator[str]:
        yield "session"
        raise HTTPException(409, "the commit failed")

    @app.post("/")
    async def route(
        background_tasks: BackgroundTasks, session: Annotated[str, Depends(session, scope="function")]
    ) -> None:
        background_tasks.add_task(note, "a")

    http = await serve(app)

    assert (await http.post("/")).status_code == 409
    assert stored() == []


async def test_an_error_status_that_is_returned_keeps_the_jobs(app: FastAPI, serve: Any, stored: Stored) -> None:
    """As with FastAPI only raising drops jobs: a returned 400 is a response like any other."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> JSONResponse:
        background_tasks.add_task(note, "a")
        return JSONResponse({}, status_code=400)

    http = await serve(app)

    assert (await http.post("/")).status_code == 400
    assert stored() == [shown(note)]


async def test_a_response_that_carries_the_container_does_not_run_it_twice(
    app: FastAPI, bg: AsyncBG, serve: Any, stored: Stored
) -> None:
    """``JSONResponse(background=background_tasks)``, which FastAPI needs, is harmless here."""
    jobs = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> JSONResponse:
        jobs.append(background_tasks.add_task(note, "once"))
        return JSONResponse({}, background=background_tasks)

    http = await serve(app)
    await http.post("/")

    await jobs[0].result(timeout=5)
    assert (ran, stored()) == (["once"], [shown(note)])


async def test_a_response_with_a_task_of_its_own_keeps_both(app: FastAPI, serve: Any) -> None:
    """FastAPI drops the injected tasks then; here the response's runs as Starlette's, the others as jobs."""
    jobs = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> JSONResponse:
        jobs.append(background_tasks.add_task(note, "the job"))
        return JSONResponse({}, background=BackgroundTask(note, "the response's"))

    http = await serve(app)
    await http.post("/")

    await jobs[0].result(timeout=5)
    assert sorted(ran) == ["the job", "the response's"]


async def test_fastapi_s_own_class_still_works_beside(app: FastAPI, serve: Any, stored: Stored) -> None:
    """A third-party dependency with FastAPI's BackgroundTasks is not touched."""

    def third_party(background_tasks: fastapi.BackgroundTasks) -> None:
        background_tasks.add_task(note, "theirs")

    @app.post("/", dependencies=[Depends(third_party)])
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "ours")

    http = await serve(app)
    await http.post("/")

    assert "theirs" in ran
    assert stored() == [shown(note)]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_job_added_while_the_body_is_streamed_is_committed_at_once(
    app: FastAPI, bg: AsyncBG, serve: Any, kind: str
) -> None:
    """The first commit is over then; what a generator adds later is not lost."""
    jobs, done = [], asyncio.Event()

    async def late() -> None:
        done.set()

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> StreamingResponse:
        jobs.append(background_tasks.add_task(note, "first"))

        async def body() -> AsyncIterator[str]:
            yield "a"
            jobs.append(background_tasks.add_task(late))
            yield "b"

        def plain_body() -> Iterator[str]:
            yield "a"
            jobs.append(background_tasks.add_task(late))
            yield "b"

        return StreamingResponse(body() if kind == "async" else plain_body())

    http = await serve(app)
    answer = await http.post("/")

    assert answer.text == "ab"
    async with asyncio.timeout(5):
        await done.wait()
    await jobs[1].result(timeout=5)
    assert jobs[0].batch != jobs[1].batch


async def test_a_websocket_route_commits_when_it_returns_or_when_it_says_so(bg: AsyncBG, stored: Stored) -> None:
    """FastAPI drops the tasks of a WebSocket route; here they are committed, also in between by ``commit()``."""
    app = FastAPI(lifespan=bg.lifespan)

    @app.websocket("/")
    async def route(websocket: WebSocket, background_tasks: BackgroundTasks) -> None:
        await websocket.accept()
        background_tasks.add_task(note, "one")
        await background_tasks.commit()
        await websocket.send_text(await websocket.receive_text())
        background_tasks.add_task(note, "two")

    def talk() -> list[int]:
        with TestClient(app) as client:
            with client.websocket_connect("/") as socket:
                socket.send_text("hello")
                socket.receive_text()
                first = len(stored())
            return [first, len(stored())]

    assert await asyncio.to_thread(talk) == [1, 2]


async def test_too_many_jobs_answer_503_and_store_none(make_bg: Any, serve: Any, stored: Stored) -> None:
    """The bound of open jobs holds for the whole request; the client is told when to come back."""
    bg = make_bg(runner={"max_queued": 2})
    app = FastAPI(lifespan=bg.lifespan)

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        for _ in range(3):
            background_tasks.add_task(note, "a")

    http = await serve(app)
    answer = await http.post("/")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert stored() == []


async def test_the_app_s_own_handler_is_asked_first(make_bg: Any, serve: Any) -> None:
    """An exception handler for asyncbg's errors gets the error itself."""
    bg = make_bg(runner={"max_queued": 1})
    app = FastAPI(lifespan=bg.lifespan)

    @app.exception_handler(OverloadedError)
    async def busy(request: Request, error: OverloadedError) -> PlainTextResponse:
        return PlainTextResponse(f"come back in {error.retry_after_s:g} s", status_code=429)

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "a")
        background_tasks.add_task(note, "b")

    http = await serve(app)
    answer = await http.post("/")

    assert (answer.status_code, answer.text) == (429, "come back in 1 s")


async def test_committing_twice_stores_once(app: FastAPI, serve: Any, stored: Stored) -> None:
    """``commit()`` in the route takes what was added so far; the end of the route takes the rest."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> int:
        background_tasks.add_task(note, "a")
        await background_tasks.commit()
        await background_tasks.commit()
        on_disk = len(stored())
        background_tasks.add_task(note, "b")
        return on_disk

    http = await serve(app)

    assert (await http.post("/")).json() == 1
    assert len(stored()) == 2
