"""A real server on a free port for each test; the mail server and the HTTP peer beside it are the plugin's."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from asyncbg.service.server import create_app
from asyncbg.settings import Settings, load_settings
from asyncbg.testing import SmtpSink
from asyncbg.testing import serve as serving

SECRET = "whsec_canary7f3aSecretOfTheTests000000"
FINAL = {"succeeded", "failed", "cancelled"}


@dataclass
class Service:
    """The running service, seen from outside."""

    http: httpx.AsyncClient
    settings: Settings

    async def post(self, path: str, **kwargs: Any) -> list[dict[str, Any]]:
        """Send a request that must be accepted; gives its jobs when all of them are final."""
        answer = await self.http.post(path, **kwargs)
        assert answer.status_code == 202, answer.text
        return [await self.final(job["id"]) for job in answer.json()["jobs"]]

    async def final(self, job_id: str) -> dict[str, Any]:
        """The job when it is final."""
        async with asyncio.timeout(20):
            while True:
                job: dict[str, Any] = (await self.http.get(f"/jobs/{job_id}", params={"wait": 10})).json()
                if job["state"] in FINAL:
                    return job

    async def events(self, job_id: str, until: str | None = None) -> list[dict[str, Any]]:
        """The job's events up to the first of type ``until``, or all of them."""
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(20), self.http.stream("GET", f"/jobs/{job_id}/events") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line.removeprefix("data: ")))
                    if seen[-1]["type"] == until:
                        break
        return seen

    @property
    def log(self) -> list[str]:
        """The lines of the notification log."""
        path = self.settings.data_dir / "notifications.log"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    @property
    def uploads(self) -> list[Path]:
        """The uploaded files that are there now, whole or not."""
        return [path for path in (self.settings.data_dir / "uploads").glob("*") if path.is_file()]


def settings_below(directory: Path) -> Settings:
    """Everything below ``directory``, and no waiting. The mail server is not there."""
    return load_settings(
        database_url=f"sqlite:///{directory}/test.db",
        data_dir=directory / "data",
        demo={"step_s": 0.05, "item_s": 0.002},
        runner={"shutdown_grace_s": 0.2},
        smtp={
            "host": "127.0.0.1", "port": 9, "security": "none", "timeout_s": 5, "sender": "service@example.com",
            "schedule_s": (0.1, 0.1, 0.1),
        },
        outbound={"allow_private": True, "timeout_s": 1, "max_bytes": 100_000, "webhook_secret": SECRET},
        upload={"max_bytes": 200_000, "max_rows": 5_000},
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The settings of one test's own service."""
    return settings_below(tmp_path)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One service for all tests of what is refused; it never gets a job. Its tests carry ``at_the_door``."""
    async with running(settings_below(tmp_path_factory.mktemp("door"))) as started:
        yield started
        assert (await started.http.get("/jobs")).json()["items"] == []


at_the_door = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Settings], Any]]:
    """Start services: ``await serve(settings)``; they are stopped when the test is over."""
    async with AsyncExitStack() as stack:

        async def start(settings: Settings) -> Service:
            return await stack.enter_async_context(running(settings))

        yield start


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """The service with the test settings; its mail server is not there."""
    async with running(settings) as started:
        yield started


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Service]:
    """Serve until the block ends."""
    async with (
        serving(create_app(settings)) as live,
        httpx.AsyncClient(base_url=live.url, timeout=15, trust_env=False) as http,
    ):
        yield Service(http, settings)


def with_mail(settings: Settings, sink: SmtpSink) -> Settings:
    """The same settings, with that mail server."""
    smtp = settings.smtp.model_copy(update={"port": sink.port})
    return settings.model_copy(update={"smtp": smtp})
