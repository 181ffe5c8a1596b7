"""What a caller needs is decided by the route that serves the request, whatever its path looks like."""

import contextlib
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import iter_route_contexts
from starlette.types import Message, Receive, Scope, Send

from asyncbg.auth.access import Access, RouteTable
from asyncbg.auth.api_key import Scope as KeyScope
from asyncbg.service.server import create_app
from tests.auth.conftest import House, Street

JOB = "018f3a5e-7b1c-7def-8a90-123456789abc"
SUBMITTING = [
    f"{route}/{name}"
    for route in ("/process", "/send-notification", "/start-task", "/safe-task", "/action")
    for name in ("stream-tickets", "events", "session", "health", "live", "jobs", "sign-out", "metrics", "docs")
]
"""Routes that take a name, with the names of other routes."""
SPELLINGS = [
    *SUBMITTING, "/", "//", "/jobs", "/jobs/", "//jobs", f"/jobs/{JOB}", f"/jobs/{JOB}/", f"/jobs/{JOB}/events",
    f"/jobs/{JOB}/cancel", "/jobs/events", "/jobs/stream-tickets/events", "/events", "/events/", "/%65vents",
    "/process%2Fstream-tickets", "/process/x%2Fstream-tickets", "/process/health%2Flive", "/process/..%2Fhealth%2Flive",
    "/health/live", "/health/live/", "/health//live", "/health%2Flive", "/HEALTH/LIVE", "/health/live%00",
    "/session", "/session/", "/sign-out", "/stream-tickets", "/stream-tickets/", "/metrics", "/docs", "/openapi.json",
    "/asyncbg.js", "/.well-known/security.txt", "/.well-known%2Fsecurity.txt", "/send-email/", "/send-email",
    "/user/7/imports", "/user/7/activity", "/nowhere", "/nowhere/health/live", "*",
]  # fmt: skip
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "get", "TRACE"]


class Watched:
    """An application that keeps what its router made of each request."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.paths = {route.endpoint: route.path for route in iter_route_contexts(app.routes)}
        self.template: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve with the router alone, without the guard."""

        async def nothing(message: Message) -> None: ...

        with contextlib.suppress(Exception):  # only which route was chosen counts
            await AsyncExitStackMiddleware(self.app.router)(scope, receive, nothing)
        self.template = self.paths.get(scope.get("endpoint"))


@pytest.mark.parametrize("root_path", ["", "/service", "/health"])
async def test_the_route_that_is_looked_up_is_the_one_that_serves(street: Street, root_path: str) -> None:
    """For every spelling and every method, with and without a prefix of a proxy or a mount."""
    app = create_app(street.settings())
    table, watched = RouteTable(app.routes), Watched(app)
    for path in SPELLINGS:
        for method in METHODS:
            for shown in (path, f"{root_path}{path}"):
                scope: dict[str, Any] = {
                    "type": "http", "method": method, "path": str(httpx.URL(f"http://x{shown}").path), "raw_path": b"",
                    "root_path": root_path, "query_string": b"", "headers": [], "app": app, "client": None,
                    "server": None, "scheme": "http", "http_version": "1.1",
                }  # fmt: skip
                found = table.find(dict(scope))
                await watched(scope, _empty, None)  # type: ignore[arg-type]  # nothing is sent
                if found.template is not None:
                    assert found.template == watched.template, (method, shown)


async def _empty() -> Message:
    return {"type": "http.disconnect"}


async def test_a_name_that_looks_like_another_route_gives_no_scope(house: House) -> None:
    """A key that may read submits nothing, one that may submit reads nothing, whatever the path is called."""
    reader, submitter = await house.enter("reader", KeyScope.READ), await house.enter("worker", KeyScope.SUBMIT)
    for path in SUBMITTING:
        answer = await reader.post(path, params={"message": "x", "action": "x", "items_count": 1})
        assert (answer.status_code, answer.json().get("scope")) == (403, "submit"), path
    for path in ("/task-progress/stream-tickets", "/task-progress/session", "/jobs/session", "/user/7/imports"):
        answer = await submitter.get(path)
        assert (answer.status_code, answer.json().get("scope")) == (403, "read"), path
    admin = await house.enter("root", KeyScope.ADMIN)
    assert (await admin.get("/jobs")).json()["items"] == []


async def test_a_name_that_looks_like_another_route_opens_no_door(house: House) -> None:
    """Without a key, where there is one: whatever a path begins or ends with, and with any ticket."""
    await house.key("ada")
    stranger = await house.enter()
    for path in SPELLINGS:
        for method in ("GET", "POST", "DELETE"):
            url = httpx.URL(house.url, raw_path=f"{path}?ticket=x".encode()) if path != "*" else house.url + "/*"
            answer = await stranger.request(method, url)
            if (method, path) not in {
                ("GET", "/"), ("GET", "/health/live"), ("GET", "/health%2Flive"), ("POST", "/session"),
                ("GET", "/.well-known/security.txt"), ("GET", "/.well-known%2Fsecurity.txt"),
            }:  # fmt: skip
                assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize(
    ("method", "path", "access"),
    [
        ("GET", "/", Access.OPTIONAL), ("HEAD", "/health/live", Access.OPEN), ("POST", "/health/live", Access.SUBMIT),
        ("OPTIONS", "/health/live", Access.READ), ("POST", "/stream-tickets", Access.READ),
        ("POST", "/process/stream-tickets", Access.SUBMIT), ("GET", "/events", Access.STREAM),
        ("GET", f"/jobs/{JOB}/events", Access.STREAM), ("GET", f"/jobs/{JOB}/events/", Access.READ),
        ("DELETE", "/session", Access.AUTHENTICATED), ("POST", "/sign-out", Access.AUTHENTICATED),
        ("GET", "/session", Access.READ),
        ("GET", "/metrics", Access.READ), ("PUT", "/nowhere", Access.SUBMIT),
    ],
)  # fmt: skip
def test_a_route_says_what_it_asks(street: Street, method: str, path: str, access: Access) -> None:
    """By its declaration, or by its method where it declares nothing."""
    table = RouteTable(create_app(street.settings()).routes)

    assert table.find({"type": "http", "method": method, "path": path, "headers": []}).access is access
