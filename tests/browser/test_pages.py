"""The service's own pages in Chromium: their policy lets them look as they should, and lets nobody else in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.async_api import BrowserContext, expect

from asyncbg.service.server import create_app
from asyncbg.settings import load_settings
from asyncbg.testing import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

_IMPORTING = """<!DOCTYPE html><title>waiting</title>
<script type="module" src="/page.js"></script>"""
_MODULE = 'import { AsyncBG } from "/asyncbg.js"; document.title = typeof AsyncBG;'
_FOREIGN = """<!DOCTYPE html><title>waiting</title>
<script src="{url}/script.js" onload="document.title = 'loaded'" onerror="document.title = 'refused'"></script>
<iframe src="{url}/docs"></iframe>"""


@pytest_asyncio.fixture(loop_scope="session")
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The service, with one more page that imports the module."""
    app = create_app(load_settings(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path))

    @app.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse(_IMPORTING, headers={"Content-Security-Policy": "default-src 'none'; script-src 'self'"})

    @app.get("/page.js")
    async def script() -> HTMLResponse:
        return HTMLResponse(_MODULE, media_type="text/javascript")

    @app.get("/script.js")
    async def classic() -> HTMLResponse:
        return HTMLResponse("globalThis.x = 1;", media_type="text/javascript")

    async with serve(app) as live:
        yield live.url


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_breaks_no_rule_of_its_own(url: str, context: BrowserContext, path: str) -> None:
    """The browser complains of nothing, and the page's style is in force."""
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    await page.goto(url + path)

    width = await page.evaluate("getComputedStyle(document.body).maxWidth")
    assert width.endswith("px")
    assert [text for text in complaints if "favicon" not in text and "404" not in text] == []


async def test_the_module_loads_in_a_page_of_the_same_origin(url: str, context: BrowserContext) -> None:
    """With the headers of the service, under a policy that lets its own scripts in."""
    page = await context.new_page()
    await page.goto(f"{url}/page")

    await expect(page).to_have_title("function")


async def test_another_origin_embeds_neither_script_nor_page(url: str, context: BrowserContext) -> None:
    """A script tag on a page of another port gets nothing, and a frame stays empty."""
    other = FastAPI()

    @other.get("/")
    async def foreign() -> HTMLResponse:
        return HTMLResponse(_FOREIGN.format(url=url))

    page = await context.new_page()
    async with serve(other) as elsewhere:
        await page.goto(elsewhere.url)

        await expect(page).to_have_title("refused")
        assert "openapi.json" not in await page.frames[1].content()
