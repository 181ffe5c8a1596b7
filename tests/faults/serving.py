"""A real server in the test's own loop, and a client that talks to it over TCP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from asyncbg.testing import serve


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Serve ``app`` until the block ends."""
    async with (
        serve(app) as live,
        httpx.AsyncClient(base_url=live.url, timeout=30, trust_env=False) as client,
    ):
        yield client
