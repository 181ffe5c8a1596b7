"""Signing in with Chromium: the form, the cookie that no script sees, a stream under it, and pages of other sites."""

from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, expect

from asyncbg.auth.keys import Keys
from asyncbg.core.clock import SystemClock
from asyncbg.settings import AuthSettings
from asyncbg.store.sqlite.database import Database
from tests.workflows.conftest import running, settings_below

pytestmark = pytest.mark.asyncio(loop_scope="session")

_POST = """async (url) => {
  try { return (await fetch(url, { method: "POST", credentials: "include" })).status; } catch { return "failed"; }
}"""
_FIRST_EVENT = """(url) => new Promise((resolve) => {
  const source = new EventSource(url);
  source.onopen = () => { source.close(); resolve("open"); };
  source.onerror = () => { source.close(); resolve("refused"); };
})"""


async def make_key(database_url: str) -> str:
    """A key for ada, made beside the service."""
    database = Database(database_url.removeprefix("sqlite:///"), readers=1)
    await database.open()
    key, _ = await Keys(database, AuthSettings(), clock=SystemClock()).create("ada")
    await database.close()
    return key


async def test_a_browser_signs_in_and_out(context: BrowserContext, tmp_path: Path) -> None:
    """On http://localhost, which browsers trust with Secure cookies; and another port's page is another site's."""
    (tmp_path / "other").mkdir()
    async with running(settings_below(tmp_path)) as service:
        await service.http.get("/health/ready")
        key = await make_key(service.settings.database_url)
        url = str(service.http.base_url).replace("127.0.0.1", "localhost")
        page = await context.new_page()
        await page.goto(f"{url}/")
        await page.get_by_label("API key").fill("abg_wrong")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("no such API key")

        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_text("Signed in as ada")).to_be_visible()
        [cookie] = await context.cookies()
        assert (cookie["name"], cookie["secure"], cookie["httpOnly"]) == ("__Host-asyncbg", True, True)
        assert await page.evaluate("document.cookie") == ""

        await context.route("**/blank", lambda route: route.fulfill(body="", content_type="text/html"))
        api = await context.new_page()
        await api.goto(f"{url}/blank")  # a page of ours without a policy
        assert await api.evaluate(_POST, f"{url}/process/x-canary7f3a") == 202
        assert await api.evaluate(_FIRST_EVENT, "/events") == "open"
        async with running(settings_below(tmp_path / "other")) as other:
            foreign = await context.new_page()
            await foreign.goto(f"{str(other.http.base_url).replace('127.0.0.1', 'localhost')}/blank")
            assert await foreign.evaluate(_POST, f"{url}/process/y-canary7f3a") == "failed"
        listed = await api.evaluate("async () => (await (await fetch('/jobs?task=slow_task_1')).json()).items.length")
        assert listed == 1

        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        assert await api.evaluate(_FIRST_EVENT, "/events") == "refused"
