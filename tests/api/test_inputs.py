"""What a request holds is taken as strictly in a query as in a body, on every route of ours, and on no other."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Query, Security
from fastapi.security import APIKeyQuery
from pydantic import BaseModel
from tests.workflows.conftest import settings_below

from asyncbg import AsyncBG
from asyncbg.service.server import create_app

PROBLEM = "application/problem+json"
JOB = "018f3a5e-7b1c-7def-8a90-123456789abc"
SAMPLES = {
    "job_id": JOB, "import_id": JOB, "email": "ada.canary7f3a@canary7f3a.example",
    "user_id": "7", "name": "x", "task_id": "x",
}  # fmt: skip


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FastAPI]:
    """The service, started."""
    app = create_app(settings_below(tmp_path))
    async with app.router.lifespan_context(app):
        yield app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client inside the same process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


def operations(app: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    """Every operation of the OpenAPI document, with its path filled in."""
    return [
        (method.upper(), path.format(**SAMPLES), operation)
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
    ]


async def test_a_parameter_that_no_route_knows_is_named(service: FastAPI) -> None:
    """On every operation: 422 that names it and those there are, and nothing of its value."""
    async with client_of(service) as client:
        for method, path, operation in operations(service):
            answer = await client.request(method, path, params={"staet": "canary7f3a"})
            assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM), (method, path)
            [error] = [one for one in answer.json()["errors"] if one["type"] == "extra_forbidden"]
            assert error["loc"] == ["query", "staet"]
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query":
                    assert parameter["name"] in error["msg"], (method, path)
            assert "canary7f3a" not in answer.text


async def test_a_parameter_that_takes_one_value_is_given_once(service: FastAPI) -> None:
    """Also with the same value twice; a list is given as often as one likes."""
    async with client_of(service) as client:
        for method, path, operation in operations(service):
            for parameter in operation.get("parameters", ()):
                if parameter["in"] != "query" or parameter["name"] == "ticket":  # one that is wrong is refused before
                    continue
                name, is_list = parameter["name"], parameter["schema"].get("type") == "array"
                answer = await client.request(method, path, params=[(name, "1"), (name, "1"), ("follow", "false")])
                errors = (
                    [(one["loc"][-1], one["type"]) for one in answer.json().get("errors", ())] if not is_list else []
                )
                assert ((name, "repeated") in errors) is not is_list, (method, path, name)
        assert (await client.get("/jobs?state=failed&state=queued")).status_code == 200


async def test_what_routes_take_is_still_taken(service: FastAPI) -> None:
    """Tickets, cursors, both forms of a workflow's input, and a version behind a file's name."""
    async with client_of(service) as client:
        ticket = (await client.post("/stream-tickets", json={"path": "/events"})).json()["url"]
        for path in (
            f"{ticket}&follow=false&type=job.failed&last_event_id=x", "/jobs?state=failed,queued&tag=a&limit=5",
            "/asyncbg.js?v=1.2", "/?", "/jobs?&", "/health/live",
        ):  # fmt: skip
            assert (await client.get(path)).status_code == 200, path
        for sent in ({"params": {"message": "x"}}, {"json": {"message": "x"}}):
            assert (await client.post("/safe-task/7", **sent)).status_code == 202  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [b"{", b"\xff", b"", b"nonsense", b'{"a":1,}', b"[" * 3_000])
async def test_what_is_no_json_is_a_bad_request(service: FastAPI, body: bytes) -> None:
    """400 on every route that reads JSON; a body that is missing is not malformed."""
    async with client_of(service) as client:
        for path in json_routes(service):
            answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            if body:
                assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM), path
                assert "valid JSON" in answer.json()["detail"] or "parsing the body" in answer.json()["detail"]
            else:
                assert answer.status_code in {202, 404, 422}, path


@pytest.mark.parametrize(
    "media", ["text/plain", "application/xml", "application/jsonx", "multipart/form-data", "", "json"]
)
async def test_what_is_sent_as_something_else_is_refused(service: FastAPI, media: str) -> None:
    """415 on every route that reads JSON, also without a word of what it is."""
    async with client_of(service) as client:
        for path in json_routes(service):
            headers = {"Content-Type": media} if media else {}
            answer = await client.post(path, content=b'{"message":"x"}', headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM), path
            assert (
                await client.post(path, content=b"{}", headers={"Content-Type": "application/merge-patch+json"})
            ).status_code != 415


def json_routes(app: FastAPI) -> list[str]:
    """The paths of the operations that take a body of JSON."""
    found = [
        path
        for method, path, operation in operations(app)
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]
    assert len(found) > 8
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jobs", {"task": "send_notification", "arg": {}}),
        (f"/jobs/{JOB}/cancel", {"raeson": "x"}),
        ("/stream-tickets", {"path": "/events", "pth": "x"}),
        ("/session", {"key": "x", "kee": "y"}),
        ("/send-notification/ada.canary7f3a@canary7f3a.example", {"message": "x", "mesage": "y"}),
        ("/safe-task/7", {"message": "x", "mesage": "y"}),
    ],
)
async def test_a_field_that_no_body_has_is_named(service: FastAPI, path: str, body: dict[str, Any]) -> None:
    """As in a query."""
    async with client_of(service) as client:
        answer = await client.post(path, json=body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", list(body)[-1]]


@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("application/x-www-form-urlencoded", b"a=1", 415),
        ("application/json", b"{", 400),
        ("application/json", b"\xff", 400),
        ("application/json", b'{"zzz":1}', 422),
        ("application/json", b"[1]", 422),
        ("application/x-www-form-urlencoded", b"", None),
        ("application/json", b"{}", None),
        ("application/json", b"null", None),
    ],
)
async def test_a_route_without_a_body_takes_none(service: FastAPI, media: str, body: bytes, status: int | None) -> None:
    """A body that says something is refused on every such operation, rather than ignored."""
    async with client_of(service) as client:
        for method, path, operation in operations(service):
            if method == "GET" or "requestBody" in operation:
                continue
            params = {one["name"]: "1" for one in operation.get("parameters", ()) if one["in"] == "query"}
            answer = await client.request(method, path, content=body, headers={"Content-Type": media}, params=params)
            if status is None:
                assert answer.status_code in {202, 204, 404}, (method, path)
            else:
                assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), (method, path)
        repeated = await client.post("/process/x", json={"name": "x"})
        other = await client.post("/process/x", json={"name": "y"})

    assert (repeated.status_code, other.status_code) == (202, 422)


class Account(BaseModel):
    """What an application's dependency may read as one."""

    tenant: str = "a"


async def test_an_applications_own_routes_and_parameters_are_its_own(tmp_path: Path) -> None:
    """What its dependency takes from the query is known, in every form FastAPI has; its routes take what they took."""
    secret = APIKeyQuery(name="api_key")

    async def current_user(
        key: Annotated[str, Security(secret)],
        account: Annotated[Account, Query()],
        role: list[str] = Query([]),  # noqa: B008
    ) -> str:
        return key + account.tenant + "".join(role)

    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router(auth=current_user), prefix="/bg")

    @app.get("/mine")
    async def mine() -> None: ...

    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/mine?staet=1")).status_code == 200
        assert (await client.get("/bg/jobs?api_key=ada&tenant=b&role=x&role=y&limit=3")).status_code == 200
        refused = await client.get("/bg/jobs?api_key=ada&tenant=b&staet=failed")
        assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["query", "staet"])
        assert (await client.get("/bg/jobs?staet=failed")).status_code == 401  # who calls comes first
