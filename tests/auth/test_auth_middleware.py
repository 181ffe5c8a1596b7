"""Authentication before routing: every route is closed unless it is opened, new and unknown ones too."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from asyncbg.auth.access import RouteTable
from asyncbg.auth.api_key import Scope, new_key
from asyncbg.service.server import create_app
from asyncbg.settings import ApiKey, AuthSettings
from tests.auth.conftest import House, Street

UNAUTHENTICATED = "urn:problem-type:asyncbg:unauthenticated"


def closed(street: Street) -> FastAPI:
    """The application with a key in its settings and a route that somebody added later."""
    key = ApiKey.model_validate({"name": "ci", "hash": "hmac-sha256$" + "0" * 32 + "$" + "0" * 64})
    settings = street.settings().model_copy(update={"auth": AuthSettings(api_keys=(key,))})
    app = create_app(settings)
    app.add_api_route("/later", lambda: {"secret": "found"}, methods=["PUT"], name="later")
    app.mount("/static", app=_static)
    return app


async def _static(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"a page"})


def open_to_all(app: FastAPI) -> set[tuple[str, str]]:
    """The operations that declare that nobody is asked."""
    return {(method, path) for method, path, access in RouteTable(app.routes).operations() if access.is_open}


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path of every route, whether it is in the OpenAPI document or not."""
    for context in app.router.routes:
        routes = context.effective_route_contexts() if hasattr(context, "effective_route_contexts") else [context]
        for route in routes:
            methods = getattr(route, "methods", None) or {"GET", "POST"}
            for method in methods:
                yield method, str(getattr(route, "path", "/")).replace("{path:path}", "x")


async def test_every_route_is_closed_unless_it_is_on_the_list(street: Street) -> None:
    """Routes, pages, documents, mounts, and a route added later: 401 with a challenge, but for those named here."""
    app = closed(street)
    found = {(method, path) for method, path in operations(app)} | {("GET", "/static/page.html"), ("GET", "/nowhere")}
    assert len(found) > 50
    assert {("PUT", "/later"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/events")} <= found
    async with app.router.lifespan_context(app), client_of(app) as client:
        for method, path in sorted(found - open_to_all(app)):
            answer = await client.request(method, path.replace("{", "").replace("}", ""))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer", (method, path)
            if method == "HEAD":
                assert answer.content == b""
            else:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["type"] == UNAUTHENTICATED


def test_few_routes_are_open_to_all(street: Street) -> None:
    """Nobody adds another without meaning to."""
    found = {(method, path) for method, path in open_to_all(closed(street)) if method != "HEAD"}

    assert found == {
        ("GET", "/"), ("POST", "/session"), ("GET", "/health/live"), ("GET", "/health/ready"),
        ("GET", "/.well-known/security.txt"),
    }  # fmt: skip


async def test_another_spelling_opens_nothing(street: Street) -> None:
    """What is open is the route, so the router alone says which path leads to it."""
    app = closed(street)
    async with app.router.lifespan_context(app), client_of(app) as client:
        for path in ("//", "/./jobs", "/health/live/", "/health/live/../../jobs", "/session/", "/%6aobs", "/health"):
            for method in ("GET", "POST"):
                answer = await client.request(method, httpx.URL("http://test", raw_path=path.encode()))
                assert answer.status_code == 401, path


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client inside the same process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def test_bad_credentials_are_refused_everywhere(house: House) -> None:
    """Also where nobody would have had to show any: what is shown has to be good."""
    client = await house.enter()
    for header in (
        "",
        "Bearer",
        "Basic YTpi",
        "hunter2-canary7f3a",
        "Bearer a b",
        "Bearer hunter2-canary7f3a",
        f"Bearer {new_key()}",
    ):
        answer = await client.get("/jobs", headers={"Authorization": header})

        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert answer.json()["type"] == UNAUTHENTICATED
        assert "canary7f3a" not in answer.text


async def test_a_key_opens_the_door(house: House) -> None:
    """The scheme is compared without regard to case (RFC 9110, 11.1); a second header is one too many."""
    key = await house.key("ada")
    client = await house.enter()

    assert (await client.get("/jobs", headers={"Authorization": f"bearer {key}"})).status_code == 200
    twice = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    assert (await client.get("/jobs", headers=twice)).status_code == 401
    assert (await client.get("/jobs", params={"key": key})).status_code == 401


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (Scope.SUBMIT, {"POST /jobs", "POST /process/x-canary7f3a"}),
        (Scope.READ, {"GET /jobs", "GET /metrics", "GET /openapi.json", "GET /docs", "POST /stream-tickets"}),
        (Scope.ADMIN, {"*"}),
    ],
)
async def test_a_scope_opens_its_part(house: House, scope: Scope, allowed: set[str]) -> None:
    """What is missing is named, in the words of RFC 6750 and as a member of the problem."""
    client = await house.enter("ada", scope)
    bodies = {
        "/jobs": {"task": "cleanup_task", "args": {"name": "x-canary7f3a"}},
        "/stream-tickets": {"path": "/events"},
    }
    for request in (
        "POST /jobs", "POST /process/x-canary7f3a", "GET /jobs", "GET /metrics", "GET /openapi.json", "GET /docs",
        "POST /stream-tickets",
    ):  # fmt: skip
        method, path = request.split()
        answer = await client.request(method, path, json=bodies.get(path) if method == "POST" else None)
        if request in allowed or "*" in allowed:
            assert answer.status_code in {200, 201, 202}, request
        else:
            missing = "submit" if scope is Scope.READ else "read"
            assert (answer.status_code, answer.json()["scope"]) == (403, missing), request
            assert f'scope="{missing}"' in answer.headers["www-authenticate"]


async def test_without_keys_this_machine_may_do_everything(house: House) -> None:
    """Nothing has to be set up to try it."""
    client = await house.enter()

    assert (await client.post("/process/x-canary7f3a")).status_code == 202
    assert (await client.get("/jobs")).json()["items"][0]["owner"] == "anonymous"


async def test_with_the_first_key_nobody_comes_in_without_one(house: House) -> None:
    """At the latest a second after it was made, by another process; the health of the service stays open."""
    client = await house.enter()
    assert (await client.get("/jobs")).status_code == 200
    await house.key("ada")

    await answered(client, "/jobs", 401)
    for path in ("/health/live", "/health/ready", "/"):
        assert (await client.get(path)).status_code == 200


async def answered(client: httpx.AsyncClient, path: str, status: int) -> None:
    """Return when the service answers so."""
    async with asyncio.timeout(10):
        while (await client.get(path)).status_code != status:  # noqa: ASYNC110 - it is another process' business
            await asyncio.sleep(0.05)


async def test_without_a_key_the_host_header_has_to_be_ours(house: House) -> None:
    """A web page whose name was made to lead to this machine (DNS rebinding) gets nothing; a key may come by any."""
    client = await house.enter()
    foreign = ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "a@localhost", "")
    for host in foreign:
        answer = await client.get("/jobs", headers={"Host": host})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:problem-type:asyncbg:foreign-host"), host
    for host in ("localhost", "LOCALHOST:1234", "127.0.0.1", "127.9.9.9:80", "[::1]:80", "asyncbg.localhost"):
        assert (await client.get("/jobs", headers={"Host": host})).status_code == 200, host

    ada = await house.enter("ada")
    assert {(await ada.get("/jobs", headers={"Host": host})).status_code for host in foreign} == {200}


async def test_without_a_key_nobody_comes_through_a_proxy(house: House) -> None:
    """A proxy on this machine is no reason to let in whom it speaks for."""
    client = await house.enter()
    for header in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via"):
        assert (await client.get("/jobs", headers={header: "127.0.0.1"})).status_code == 403, header


async def test_anonymous_callers_beside_keys_are_guests(street: Street) -> None:
    """Where the setting lets them in they submit, and see what guests submitted; keys see their own."""
    house = await street.build(street.settings(allow_anonymous=True))
    ada, guest = await house.enter("ada"), await house.enter()
    [hers] = [(await ada.post("/process/x-canary7f3a")).json()["jobs"][0]["id"]]
    await answered(guest, f"/jobs/{hers}", 404)
    his = (await guest.post("/process/x-canary7f3a")).json()["jobs"][0]["id"]

    assert {job["owner"] for job in (await guest.get("/jobs")).json()["items"]} == {"anonymous"}
    assert (await ada.get(f"/jobs/{his}")).status_code == 404


async def test_nobody_comes_in_where_that_is_forbidden(street: Street) -> None:
    """Not even from this machine, not even before there is a key."""
    house = await street.build(street.settings(allow_anonymous=False))

    assert (await (await house.enter()).get("/jobs")).status_code == 401
    assert (await (await house.enter("ada")).get("/jobs")).status_code == 200


async def test_without_its_database_the_door_stays_closed(street: Street) -> None:
    """Where nobody can be recognised nobody is let in, anonymous callers neither; it still answers that it lives."""
    app = create_app(street.settings())
    async with client_of(app) as client:  # nothing was started
        for headers in ({}, {"Authorization": f"Bearer {new_key()}"}, {"Cookie": "__Host-asyncbg=x"}):
            assert (await client.get("/jobs", headers=headers)).status_code == 503
        assert (await client.get("/health/live")).status_code == 200


async def test_the_document_says_how_to_get_in(house: House) -> None:
    """Every operation but the open ones may answer 401 and 403, and names the schemes."""
    document = (await (await house.enter()).get("/openapi.json")).json()
    open_operations = open_to_all(create_app(house.settings))

    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{"key": []}, {"session": []}]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if (method.upper(), path) in open_operations:
                assert operation["security"] == []
            else:
                assert {"401", "403"} <= operation["responses"].keys(), path


def test_the_routes_are_really_looked_at(street: Street) -> None:
    """The walk over the application finds what FastAPI would serve."""
    found = set(operations(closed(street)))

    assert {("POST", "/send-email/"), ("DELETE", "/session"), ("GET", "/metrics")} <= found
