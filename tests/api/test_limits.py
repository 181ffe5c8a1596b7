"""No route takes a body without end: every one of the service and of the library's router answers 413."""

import gzip
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from asyncbg import AsyncBG
from asyncbg.service.server import create_app
from asyncbg.settings import Settings, load_settings

Make = Callable[[Path], FastAPI]
ENDLESS = {"content-length": str(10**15), "content-type": "application/json"}
PROBLEM = "application/problem+json"
TOO_LARGE = (413, PROBLEM)
LARGE = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Operation:
    """A method and a path, with something in the place of each parameter."""

    method: str
    path: str
    takes_body: bool
    statuses: frozenset[str]


def operations(app: FastAPI) -> list[Operation]:
    """All of the OpenAPI document."""
    return [
        Operation(method.upper(), _filled(path), "requestBody" in operation, frozenset(operation["responses"]))
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
    ]


def _filled(path: str) -> str:
    path = path.replace("{email}", "ada.canary7f3a@canary7f3a.example").replace("{user_id}", "7")
    return re.sub(r"\{\w+\}", "018f3a5e-7b1c-7def-8a90-123456789abc", path)


def service(directory: Path) -> FastAPI:
    """The standalone service."""
    database_url = f"sqlite:///{directory}/jobs.db"
    return create_app(load_settings(data_dir=directory, database_url=database_url, upload={"max_bytes": LARGE // 2}))


def library(directory: Path) -> FastAPI:
    """An application that sets no limit, with the library's router in it."""
    bg = AsyncBG(Settings(data_dir=directory, database_url=f"sqlite:///{directory}/jobs.db"))
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """A client that talks to the application itself."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("make", [service, library])
async def test_every_route_refuses_an_announced_body_without_end(make: Make, tmp_path: Path) -> None:
    """A route that reads no body too: 413 as a problem document, before anything of it is read."""
    app = make(tmp_path)

    async with app.router.lifespan_context(app), client_of(app) as client:
        for operation in operations(app):
            answer = await client.request(operation.method, operation.path, headers=ENDLESS)
            assert (answer.status_code, answer.headers["content-type"]) == TOO_LARGE, operation


@pytest.mark.parametrize("make", [service, library])
async def test_every_route_that_takes_a_body_counts_it(make: Make, tmp_path: Path) -> None:
    """Without an announced length it is counted as it comes, and left at the limit."""
    app = make(tmp_path)
    routes = [operation for operation in operations(app) if operation.takes_body]
    assert len(routes) >= 3

    async with app.router.lifespan_context(app), client_of(app) as client:
        for operation in routes:
            media = (
                "multipart/form-data; boundary=b"
                if operation.path.startswith(("/upload", "/attachments"))
                else "application/json"
            )
            headers = {"content-type": media}
            answer = await client.request(operation.method, operation.path, content=endless(), headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == TOO_LARGE, operation


@pytest.mark.parametrize("make", [service, library])
async def test_every_route_refuses_a_compressed_body(make: Make, tmp_path: Path) -> None:
    """Nothing is unpacked: 415 says what is taken instead, announced or chunked, and OpenAPI says so of each route."""
    app = make(tmp_path)
    routes = [operation for operation in operations(app) if operation.method != "GET"]
    assert {"/jobs", "/bg/jobs"} & {operation.path for operation in routes}
    content = gzip.compress(b'{"task": "x"}')

    async def chunked() -> AsyncIterator[bytes]:
        yield content

    async with app.router.lifespan_context(app), client_of(app) as client:
        for operation in routes:
            assert operation.statuses >= {"413", "415"}, operation
            for coding, body in (("gzip", content), ("identity, br", content), ("GZip", chunked())):
                headers = {"content-type": "application/json", "content-encoding": coding}
                answer = await client.request(operation.method, operation.path, content=body, headers=headers)
                assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM), operation
                assert answer.headers["accept-encoding"] == "identity"
                assert "Content-Encoding" in answer.json()["detail"]
        [jobs] = [operation.path for operation in routes if operation.path.endswith("/jobs")]
        for coding, body in (("gzip", b""), ("identity", b"{}")):
            headers = {"content-type": "application/json", "content-encoding": coding}
            answer = await client.post(jobs, content=body, headers=headers)
            assert answer.status_code == 422


async def endless() -> AsyncIterator[bytes]:
    """A body without end; nobody should take more than 20 MiB of it."""
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\n'
    for _ in range(LARGE // 65_536):
        yield b" " * 65_536
    raise AssertionError("nobody counts")
