"""Errors are problem documents (RFC 9457) that tell what is wrong and never what was sent."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import AfterValidator, BaseModel, EmailStr, Field

from asyncbg.errors import (
    ArgumentsError,
    AsyncBGError,
    BadCursorError,
    DatabaseError,
    ErrorItem,
    IdempotencyError,
    JobFailedError,
    JobNotFoundError,
    JobStateError,
    NotRunningError,
    OverloadedError,
    UnknownTaskError,
)
from asyncbg.privacy import Personal
from asyncbg.web.problem_route import ProblemRoute
from asyncbg.web.problems import install_problems

PROBLEM = "application/problem+json"
SECRET = "ada.canary7f3a@canary7f3a.example"
JOB_ID = "019ab3f0-5a1e-7000-8000-3f1c0de5a7b2"
ERRORS: dict[str, tuple[Exception, int]] = {
    "not-found": (JobNotFoundError(SECRET), 404),
    "unknown": (UnknownTaskError(SECRET, ["greet"]), 404),
    "arguments": (ArgumentsError("greet", [ErrorItem(loc=["to"], msg="Field required", type="missing")]), 422),
    "cursor": (BadCursorError(), 422),
    "state": (JobStateError(JOB_ID, "succeeded", "cancel"), 409),
    "key": (IdempotencyError(SECRET), 422),
    "overloaded": (OverloadedError("too many", retry_after_s=2.2), 503),
    "database": (DatabaseError(f"cannot open {SECRET}"), 503),
    "stopped": (NotRunningError("call start()"), 503),
    "failed": (JobFailedError(JOB_ID, "ValueError", SECRET), 500),
    "other": (AsyncBGError(SECRET), 500),
    "bug": (ZeroDivisionError(SECRET), 500),
    "http": (HTTPException(418, "short and stout", {"X-Pot": "tea"}), 418),
    "odd": (HTTPException(499, {"anything": SECRET}), 499),
}


def refuse_politely(value: str) -> str:
    """A validator of somebody who quotes the input."""
    raise ValueError(f"{value} is not welcome")


class Form(BaseModel):
    """Fields whose validators like to quote."""

    email: EmailStr = "someone.canary7f3a@canary7f3a.example"
    id: UUID = UUID(int=0)
    choice: Literal["a", "b"] = "a"
    polite: Annotated[str, AfterValidator(refuse_politely)] = "x"
    number: int = Field(default=0, le=10)


def routes(route_class: type[Any]) -> APIRouter:
    """Routes that go wrong in every way."""
    router = APIRouter(route_class=route_class)

    @router.get("/raise/{name}")
    async def raise_error(name: str, email: str = "") -> None:
        raise ERRORS[name][0]

    @router.post("/form")
    async def take_form(form: Form) -> str:
        return "taken"

    @router.get("/user/{user_id}/{email}")
    async def show_user(user_id: int, email: str, limit: int = 1) -> str:
        return "shown"

    @router.post("/user/{user_id}/{email}")
    async def change_user(user_id: int, email: str) -> str:
        return "changed"

    return router


def service() -> FastAPI:
    """An app of our own: every error is a problem."""
    app = FastAPI()
    install_problems(app)
    app.include_router(routes(ProblemRoute))
    return app


def host() -> FastAPI:
    """Somebody else's app, with handlers of its own; our router is a guest in it."""
    app = FastAPI()
    app.include_router(routes(ProblemRoute))

    @app.exception_handler(Exception)
    @app.exception_handler(HTTPException)
    @app.exception_handler(AsyncBGError)
    async def answer(request: Request, error: Exception) -> Response:
        return PlainTextResponse("the host's answer", 400)

    @app.get("/theirs")
    async def theirs() -> None:
        raise HTTPException(404)

    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """An HTTP client of ``app``."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


@pytest.fixture(params=[service, host])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """A client of our routes, in an app of our own and in somebody else's."""
    async with client_of(request.param()) as client:
        yield client


@pytest.mark.parametrize("name", ERRORS)
async def test_every_error_has_its_status_and_form(client: httpx.AsyncClient, name: str) -> None:
    """type, title, status and instance are there, and nothing of what was sent or of a bug's message."""
    answer = await client.get(f"/raise/{name}", params={"email": SECRET})

    problem = answer.json()
    assert answer.status_code == problem["status"] == ERRORS[name][1]
    assert answer.headers["content-type"] == PROBLEM
    assert problem["instance"] == f"/raise/{name}"
    assert problem["type"]
    assert problem["title"]
    assert "ada" not in answer.text


async def test_a_problem_says_what_to_do(client: httpx.AsyncClient) -> None:
    """The known tasks, the wrong arguments, the job's state, the raiser's words, when to come back."""
    problems = {name: (await client.get(f"/raise/{name}")).json() for name in ERRORS}

    assert problems["unknown"]["known"] == ["greet"]
    assert problems["arguments"]["errors"] == [{"loc": ["to"], "msg": "Field required", "type": "missing"}]
    assert problems["cursor"]["errors"][0]["loc"] == ["query", "cursor"]
    assert "it is succeeded" in problems["state"]["detail"]
    assert problems["http"]["detail"] == "short and stout"
    assert problems["bug"]["detail"] == "internal server error; see the server log"


async def test_headers_of_an_error_are_kept(client: httpx.AsyncClient) -> None:
    """Those of an HTTPException, and Retry-After in whole seconds, never too early."""
    assert (await client.get("/raise/http")).headers["x-pot"] == "tea"
    assert (await client.get("/raise/overloaded")).headers["retry-after"] == "3"
    assert (await client.get("/raise/database")).headers["retry-after"] == "1"


async def test_an_unforeseen_error_is_logged_once(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """With its class, its place and the route's template; without its message."""
    await client.get("/raise/bug")

    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    text = record.getMessage()
    assert "ZeroDivisionError" in text
    assert "/raise/{name}" in text
    assert "in raise_error" in text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", SECRET + "@"),
        ("email", "ada canary7f3a"),
        ("id", "ada-canary7f3a-ada"),
        ("choice", "ada"),
        ("polite", "ada"),
        ("number", "ada"),
        ("number", 424242),
        (SECRET, 1),
        ("ada canary7f3a", 1),
        ("a" * 90 + "ada" * 10, 1),
    ],
)
async def test_a_rejected_input_is_never_echoed(client: httpx.AsyncClient, field: str, value: object) -> None:
    """422 says where and what, in our words or pydantic's, without the value."""
    answer = await client.post("/form", json={field: value, "number": value if field == "number" else 11})

    assert answer.status_code == 422
    for item in answer.json()["errors"]:
        assert set(item) == {"loc", "msg", "type"}
        assert item["msg"]
    assert "ada" not in answer.text
    assert "424242" not in answer.text


@pytest.mark.parametrize(
    ("path", "instance"),
    [
        ("/user/7/ada.canary7f3a@canary7f3a.example?limit=x", "/user/7/{email}"),
        ("/user/ada/x", "/user/{user_id}/x"),
        ("/user/ada/ada%20canary7f3a", "/user/{user_id}/{email}"),
        ("/user/7/%F0%9F%98%80?limit=ada", "/user/7/{email}"),
    ],
)
async def test_the_instance_shows_no_personal_part_of_the_path(
    client: httpx.AsyncClient, path: str, instance: str
) -> None:
    """A parameter that was refused, or that is more than a plain word, is shown by its name."""
    answer = await client.get(path)

    assert answer.status_code == 422
    assert answer.json()["instance"] == instance
    assert "ada" not in answer.text


@pytest.mark.parametrize("app", [service, host])
async def test_a_method_that_is_not_allowed_names_all_that_are(app: Any) -> None:
    """405 with Allow, though each route knows only its own method."""
    async with client_of(app()) as client:
        answer = await client.delete("/user/7/x")

    assert answer.status_code == 405
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("path", "instance"),
    [
        ("/user/7/ada.canary7f3a@canary7f3a.example/x", "/user/7/{...}/{...}"),
        ("/users/ada-canary7f3a", "/{...}/{...}"),
        (f"/user/{JOB_ID}/7/8?ada", f"/user/{JOB_ID}/7/8"),
    ],
)
async def test_a_path_of_nobody_is_a_problem_in_the_service(path: str, instance: str) -> None:
    """404; what is no word of ours in the path may be somebody's name, and is not shown."""
    async with client_of(service()) as client:
        answer = await client.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["instance"] == instance


async def test_a_personal_part_of_the_path_is_shown_by_its_name() -> None:
    """A plain word, too, where the route's parameter is marked: it may be a name."""
    app = service()

    @app.get("/hello/{name}/{word}")
    async def hello(name: Annotated[str, Personal("name")], word: str) -> None:
        raise HTTPException(409)

    async with client_of(app) as client:
        answer = await client.get("/hello/ada/again")

    assert answer.json()["instance"] == "/hello/{name}/again"


async def test_the_routes_of_the_host_keep_the_answers_of_the_host() -> None:
    """Our router changes nothing in the app it is a guest in."""
    async with client_of(host()) as client:
        assert (await client.get("/theirs")).text == "the host's answer"


async def test_a_dependency_sees_the_error_of_its_route() -> None:
    """Whatever was opened for the request can roll back: the answer is made after the dependencies are closed."""
    seen: list[str] = []

    async def opened() -> AsyncIterator[None]:
        try:
            yield
        except ZeroDivisionError:
            seen.append("rolled back")
            raise

    app = FastAPI()
    router = APIRouter(route_class=ProblemRoute)

    @router.get("/", dependencies=[Depends(opened, scope="function")])
    async def divide() -> float:
        return 1 / 0

    app.include_router(router)
    async with client_of(app) as client:
        answer = await client.get("/")

    assert (answer.status_code, seen) == (500, ["rolled back"])


@pytest.mark.parametrize(("size", "status"), [(1024 * 1024, 200), (1024 * 1024 + 1, 413)])
async def test_a_route_takes_a_mebibyte_and_no_more(size: int, status: int) -> None:
    """The limit is exact, with and without an announced length."""
    app = FastAPI()
    router = APIRouter(route_class=ProblemRoute)

    @router.post("/", openapi_extra={"requestBody": {}})
    async def count(request: Request) -> int:
        return len(await request.body())

    async def in_chunks() -> AsyncIterator[bytes]:
        yield b" " * (size - 1)
        yield b" "

    app.include_router(router)
    async with client_of(app) as client:
        answers = [await client.post("/", content=b" " * size), await client.post("/", content=in_chunks())]

    assert [answer.status_code for answer in answers] == [status, status]
