"""A real service on a real database, and beside it somebody with the command line's own hands on that database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from asyncbg.auth.api_key import DEFAULT_SCOPES, Scope
from asyncbg.auth.audit import Audit, AuditEntry
from asyncbg.auth.keys import Keys
from asyncbg.core.clock import SystemClock
from asyncbg.settings import AuthSettings, Settings
from asyncbg.store.sqlite.database import Database
from tests.workflows.conftest import running, settings_below


@dataclass
class House:
    """The service, seen from outside, and its keys, changed from beside."""

    url: str
    settings: Settings
    keys: Keys
    audit: Audit
    stack: AsyncExitStack
    key_of: dict[str, str] = field(default_factory=dict)

    async def key(self, name: str, *scopes: Scope, expires_ms: int | None = None) -> str:
        """The key of that name, made when it is first asked for."""
        if name not in self.key_of:
            self.key_of[name], _ = await self.keys.create(name, scopes=scopes or DEFAULT_SCOPES, expires_ms=expires_ms)
        return self.key_of[name]

    async def enter(self, name: str | None = None, *scopes: Scope, **headers: str) -> httpx.AsyncClient:
        """A client that shows the key of that name, or none."""
        shown = {"Authorization": f"Bearer {await self.key(name, *scopes)}"} if name else {}
        client = httpx.AsyncClient(base_url=self.url, headers={**shown, **headers}, timeout=20, trust_env=False)
        return await self.stack.enter_async_context(client)

    async def entries(self, what: str, least: int = 1) -> list[AuditEntry]:
        """The audit log's rows of a kind, oldest first, once there are so many: refusals are written a moment later."""
        async with asyncio.timeout(10):
            while len(found := (await self.audit.read(what=what, limit=500)).items) < least:  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.02)
        return found[::-1]


@dataclass
class Street:
    """Where houses stand."""

    directory: Path
    stack: AsyncExitStack
    houses: int = 0

    def settings(self, **auth: Any) -> Settings:
        """Settings of a service that is not there yet."""
        return settings_below(self.directory).model_copy(update={"auth": AuthSettings(**auth)})

    async def build(self, settings: Settings | None = None) -> House:
        """Serve."""
        settings = settings or self.settings()
        service = await self.stack.enter_async_context(running(settings))
        url = str(service.http.base_url)
        await service.http.get("/health/ready")  # the tables are there
        database = Database(settings.database_url.removeprefix("sqlite:///"), readers=1)
        await database.open()
        self.stack.push_async_callback(database.close)
        keys = Keys(database, settings.auth, clock=SystemClock())
        return House(url, settings, keys, Audit(database, clock=SystemClock()), self.stack)


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    """Room for services; they are stopped when the test is over."""
    async with AsyncExitStack() as stack:
        yield Street(tmp_path, stack)


@pytest.fixture
async def house(street: Street) -> House:
    """A service with the default settings and no key yet."""
    return await street.build()
