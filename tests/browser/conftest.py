"""Chromium before a site of the test's own."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, async_playwright

from tests.browser.site import Proxy, Site
from tests.browser.tab import Tab

CHROMIUM = Path("/usr/bin/chromium")
_IS_INSTALLED = CHROMIUM.exists()
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]

OpenSite = Callable[..., Awaitable[Site]]
OpenTab = Callable[[Site], Awaitable[Tab]]


@pytest_asyncio.fixture(loop_scope="session")
async def open_site(tmp_path: Path) -> AsyncIterator[OpenSite]:
    """Start an application with the given stream settings, behind a proxy."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings: Any) -> Site:
            site = Site(tmp_path / "asyncbg.db", settings)
            site.proxy = Proxy(await site.start())
            stack.push_async_callback(site.stop)
            site.url = await stack.enter_async_context(site.proxy.serving())
            return site

        yield start


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium, started once; each test has a context of its own."""
    if not _IS_INSTALLED:
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """One person's browser: its pages are tabs that know of each other."""
    async with await browser.new_context() as context:
        yield context


@pytest.fixture
def open_tab(context: BrowserContext) -> OpenTab:
    """Open a tab on a site's empty page, which has a strict Content-Security-Policy."""

    async def open_one(site: Site) -> Tab:
        return await Tab(await context.new_page(), site).open()

    return open_one
