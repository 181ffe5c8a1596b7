"""Every snippet of docs/javascript.md is run in Chromium, as it stands."""

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Route

from tests.browser.conftest import OpenSite, OpenTab
from tests.browser.site import Site

pytestmark = pytest.mark.asyncio(loop_scope="session")

_TEXT = (Path(__file__).parents[2] / "docs" / "javascript.md").read_text("utf-8")
_BLOCKS = re.findall(r"^```(js|html)\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)


def page_of(kind: str, code: str, job_id: str) -> str:
    """A page with the snippet in it; a script may use ``job``, and tells that it came to its end."""
    if kind == "html":
        return code
    setup = f"globalThis.job = {json.dumps(job_id)}"
    return f'<!DOCTYPE html><script>{setup}</script><script type="module">{code}; tell({{ type: "ran" }})</script>'


async def finished_job(site: Site) -> str:
    """A job that reported progress and is over; there is also the task that the document speaks of."""

    @site.bg.task(name="resize")
    async def resize(album: int) -> int:
        return album

    job_id = await site.submit()
    site.order(5, None)
    await site.bg.wait(job_id, 20)
    return job_id


@pytest.mark.parametrize(("kind", "code"), _BLOCKS, ids=[f"{kind}-{n}" for n, (kind, _) in enumerate(_BLOCKS)])
async def test_a_snippet_runs(open_site: OpenSite, open_tab: OpenTab, kind: str, code: str) -> None:
    """A script comes to its end, a page does what it is for; neither raises an error."""
    site = await open_site()
    job_id = await finished_job(site)
    tab = await open_tab(site)

    async def answer(route: Route) -> None:
        await route.fulfill(content_type="text/html", body=page_of(kind, code, job_id))

    await tab.page.route("**/snippet", answer)
    async with tab.page.expect_response(lambda response: "/bg/jobs" in response.url):
        await tab.page.goto(f"{site.url}/snippet#{job_id}")

    if kind == "js":
        await tab.until("ran")
    elif "role=status" in code:
        await tab.page.wait_for_selector("text=job.succeeded")
    assert not tab.errors
