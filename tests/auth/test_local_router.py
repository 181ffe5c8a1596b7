"""The routes of ``bg.router`` as the README includes them: this machine may call, and nobody else."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from asyncbg import AsyncBG
from asyncbg.testing.server import serve
from tests.auth.test_router_auth import shop

FORWARDED = [
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Server", "Via", "X-Real-IP",
    "CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "X-Envoy-External-Address", "X-Original-Forwarded-For",
    "X-Cluster-Client-IP", "Fly-Client-IP",
]  # fmt: skip
ROUTES = [
    ("GET", "/jobs"), ("POST", "/jobs"), ("GET", "/events"), ("POST", "/stream-tickets"), ("GET", "/metrics"),
    ("GET", "/"), ("GET", "/asyncapi.json"), ("GET", "/asyncbg.js"), ("HEAD", "/jobs"),
    ("POST", "/jobs/018f3a5e-7b1c-7def-8a90-123456789abc/cancel"),
]  # fmt: skip


@asynccontextmanager
async def caller(app: Any, address: str = "127.0.0.1", **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client at that address, in this process."""
    transport = httpx.ASGITransport(app=app, client=(address, 50000))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers=headers) as client:
        yield client


@pytest.mark.parametrize("address", ["203.0.113.9", "10.0.0.6", "::ffff:10.0.0.6", "fe80::1%eth0", "2001:db8::1"])
async def test_who_calls_from_elsewhere_is_refused(tmp_path: Path, address: str) -> None:
    """Every route, with the remedy in the answer; probes find the health; the application's own routes are its own."""
    async with shop(tmp_path) as (_, app), caller(app, address) as client:
        for method, path in ROUTES:
            answer = await client.request(method, f"/bg{path}", json={} if method == "POST" else None)
            assert answer.status_code == 403, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"
            if method != "HEAD":
                assert answer.json()["type"] == "urn:problem-type:asyncbg:foreign-host"
                assert "bg.router(auth=" in answer.json()["detail"]
        assert (await client.get("/bg/health/live")).status_code == 200
        assert (await client.get("/bg/health/ready")).status_code == 200
        assert (await client.post("/greet")).status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_is_answered(tmp_path: Path, address: str) -> None:
    """Over either family, and by both kinds of test client."""
    async with shop(tmp_path) as (_, app), caller(app, address) as client:
        assert (await client.get("/bg/jobs")).status_code == 200
        assert (await client.post("/bg/jobs", json={"task": "greet"})).status_code == 202


def test_the_test_client_is_this_machine(tmp_path: Path) -> None:
    """Starlette's names itself testclient; one that is given an address of elsewhere is elsewhere."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")
    with TestClient(app) as client:
        assert client.get("/bg/jobs").status_code == 200
        assert TestClient(app, client=("203.0.113.9", 1)).get("/bg/jobs").status_code == 403


@pytest.mark.parametrize("header", FORWARDED)
async def test_what_a_proxy_passed_on_is_from_elsewhere(tmp_path: Path, header: str) -> None:
    """Also where it says that the client is this machine, and where the server took the address from the header."""
    async with shop(tmp_path) as (_, app):
        proxied: Any = ProxyHeadersMiddleware(app, trusted_hosts="*")  # type: ignore[arg-type]  # uvicorn's own words
        for served in (app, proxied):
            async with caller(served) as client:
                assert (await client.get("/bg/jobs", headers={header: "127.0.0.1"})).status_code == 403


async def test_no_page_of_another_site_changes_anything(tmp_path: Path) -> None:
    """A browser says where a request comes from; what is no browser says nothing."""
    async with shop(tmp_path) as (_, app), caller(app) as client:
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "http://shop", "Sec-Fetch-Site": "cross-site"},
        ):
            for path in ("/jobs", "/stream-tickets", "/jobs/018f3a5e-7b1c-7def-8a90-123456789abc/retry"):
                answer = await client.post(f"/bg{path}", json={"task": "greet"}, headers=headers)
                assert answer.json()["type"] == "urn:problem-type:asyncbg:cross-site", (headers, path)
        ours = {"Origin": "http://shop", "Sec-Fetch-Site": "same-origin"}
        assert (await client.post("/bg/jobs", json={"task": "greet"}, headers=ours)).status_code == 202


async def test_a_name_that_was_made_to_lead_here_is_refused(tmp_path: Path) -> None:
    """A web page reads what its own host name leads to (DNS rebinding); a name of this machine is none of the web."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    async with serve(app) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"):
            assert (await client.get("/jobs", headers={"Host": host})).status_code == 403, host
        for host in ("localhost:1", "devbox", "[::1]:8000"):
            assert (await client.get("/jobs", headers={"Host": host})).status_code == 200, host


async def test_none_opens_it_on_purpose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To everybody, through anything, and one line of the log says so."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router(auth=None), prefix="/bg")
    async with app.router.lifespan_context(app), caller(app, "203.0.113.9", **{"X-Forwarded-For": "1.2.3.4"}) as client:
        assert (await client.get("/bg/jobs")).status_code == 200
        ticket = (await client.post("/bg/stream-tickets", json={"path": "/events"})).json()["url"]
        assert (await client.get(f"{ticket}&follow=false")).status_code == 200

    assert [record.levelname for record in caplog.records if "auth=None" in record.getMessage()] == ["WARNING"]


def _as_it_is(app: FastAPI, bg: AsyncBG) -> None:
    app.include_router(bg.router, prefix="/bg")


def _below_a_router(app: FastAPI, bg: AsyncBG) -> None:
    outer = APIRouter()
    outer.include_router(bg.router, prefix="/bg")
    app.include_router(outer, prefix="/api")


def _mounted(app: FastAPI, bg: AsyncBG) -> None:
    app.mount("/bg", bg.router)


@pytest.mark.parametrize("include", [_as_it_is, _below_a_router, _mounted])
async def test_the_start_says_how_to_open_it(tmp_path: Path, caplog: pytest.LogCaptureFixture, include: Any) -> None:
    """Once, however it is included."""
    bg = AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)
    app = FastAPI(lifespan=bg.lifespan)
    include(app, bg)
    async with app.router.lifespan_context(app):
        pass

    assert len([record for record in caplog.records if "bg.router(auth=current_user)" in record.getMessage()]) == 1


async def test_the_start_says_nothing_where_the_application_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a dependency of its own, or without the routes, there is nothing to say."""
    with caplog.at_level(logging.WARNING):
        async with shop(tmp_path, auth=lambda: "ada") as (_, app), caller(app, "203.0.113.9") as client:
            assert (await client.get("/bg/jobs")).status_code == 200

    assert "bg.router" not in caplog.text


def test_a_call_without_a_word_is_explained(tmp_path: Path) -> None:
    """``bg.router()`` could mean either."""
    with pytest.raises(TypeError, match="needs auth="):
        AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db").router()  # type: ignore[call-overload]
