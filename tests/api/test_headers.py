"""Security headers: on every answer, a page's own policy kept, no door for other origins."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from asyncbg.service.server import create_app
from asyncbg.settings import load_settings
from asyncbg.testing import serve
from asyncbg.web.headers import SECURITY_HEADERS, SecurityHeaders, content_policy

PATHS = [
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/asyncapi.json"),
    ("GET", "/asyncbg.js"),
    ("HEAD", "/asyncbg.js"),
    ("GET", "/jobs"),
    ("GET", "/jobs/nobody"),
    ("GET", "/events?follow=false"),
    ("GET", "/metrics"),
    ("GET", "/health/live"),
    ("GET", "/nowhere"),
    ("DELETE", "/jobs"),
    ("OPTIONS", "/jobs"),
    ("POST", "/jobs"),
    ("POST", "/upload-csv/1"),
]


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service on a real server."""
    app = create_app(load_settings(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path))

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("a mistake that nobody foresaw")

    async with serve(app) as live, httpx.AsyncClient(base_url=live.url, trust_env=False) as client:
        yield client


async def test_every_answer_has_them(http: httpx.AsyncClient) -> None:
    """Pages, documents, scripts, streams and errors, those of the router and of the framework too."""
    for method, path in [*PATHS, ("GET", "/broken")]:
        answer = await http.request(method, path)

        missing = [name for name in SECURITY_HEADERS if name not in answer.headers]
        assert not missing, (method, path, missing)
        twice = [name for name in SECURITY_HEADERS if len(answer.headers.get_list(name)) != 1]
        assert not twice, (method, path, twice)


async def test_a_mistake_of_ours_has_them_too(http: httpx.AsyncClient) -> None:
    """Starlette answers it before all middleware that is added the usual way."""
    answer = await http.get("/broken")

    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_no_policy_has_a_hole(http: httpx.AsyncClient) -> None:
    """Nothing is allowed but what is listed; nothing unsafe, from elsewhere or by wildcard is."""
    for path in ("/", "/docs", "/jobs", "/nowhere"):
        policy = (await http.get(path)).headers["content-security-policy"]

        assert policy.startswith("default-src 'none'; "), path
        assert "frame-ancestors 'none'" in policy, path
        for hole in ("unsafe", "*", "http:", "https:", "data:", "script-src"):
            assert hole not in policy, (path, hole)


async def test_no_other_origin_is_let_in(http: httpx.AsyncClient) -> None:
    """No answer has a CORS header, whoever asks, and a preflight gets no permission."""
    asking = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method, path in PATHS:
        answer = await http.request(method, path, headers=asking)

        assert not [name for name in answer.headers if name.startswith("access-control-")], (method, path)
    assert (await http.options("/jobs", headers=asking)).status_code == 405


async def test_the_module_may_be_imported_by_a_page_of_the_same_origin_only(http: httpx.AsyncClient) -> None:
    """A script that is embedded elsewhere is refused by the browser (Fetch, Cross-Origin-Resource-Policy)."""
    answer = await http.get("/asyncbg.js")

    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"


async def test_only_the_first_message_is_looked_at() -> None:
    """What follows is given on as it is, by the server's own coroutine: a stream's events pay nothing."""
    sent: list[Message] = []
    body: Message = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
    awaitables: list[object] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Referrer-Policy", b"origin")]})
        event = send(body)
        awaitables.append(event)
        await event

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await SecurityHeaders(app)({"type": "http"}, receive, send)

    assert sent[1] is body
    assert getattr(awaitables[0], "cr_code", None) is send.__code__
    names = [name.lower() for name, _ in sent[0]["headers"]]
    assert names.count(b"referrer-policy") == 1
    assert set(names) == {name.lower().encode() for name in SECURITY_HEADERS}


def test_a_page_may_have_its_own_style_only() -> None:
    """By its hash, which is of the style's very text."""
    assert "style-src 'sha256-" in content_policy(style="p { color: red; }")
    assert content_policy(style="a") != content_policy(style="b")
    assert "style-src" not in content_policy()
