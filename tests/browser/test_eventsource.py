"""Chromium's own EventSource on our streams: progress, a cut, resuming, and the 204 that ends it."""

import pytest

from tests.browser.conftest import OpenSite, OpenTab
from tests.browser.site import Site
from tests.browser.tab import Tab, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

_OPEN = """(url) => {
  const source = new EventSource(url);
  const types = ["queued", "started", "progress", "succeeded"].map((name) => `job.${name}`);
  for (const type of [...types, "thing.done", "stream.bye"])
    source.addEventListener(type, ({ data, lastEventId }) => tell({ ...JSON.parse(data), lastEventId }));
  source.onopen = () => tell({ type: "open" });
  source.onerror = () => tell({ type: source.readyState === EventSource.CLOSED ? "closed" : "reconnecting" });
}"""


async def cut_and_come_back(site: Site, tab: Tab) -> None:
    """Break the connections and wait until the browser has opened its stream again."""
    site.proxy.cut()
    await tab.until("reconnecting")
    await tab.until("open")


async def test_progress_reaches_an_event_source_while_the_job_runs(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Each report comes before the next is made, under the id of the stored event before it."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.page.evaluate(_OPEN, f"/bg/jobs/{job_id}/events")
    started = await tab.until("job.started")
    for current in (1, 2, 3):
        site.order(current)
        progress = await tab.progress(current)
        assert progress["lastEventId"] == started["id"]
    site.order(None)
    await tab.until("job.succeeded")


async def test_a_cut_connection_is_resumed_without_gap_or_repeat(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Over three cuts, with events before, during and after each, every stored event is told once and in order."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.page.evaluate(_OPEN, f"/bg/jobs/{job_id}/events")
    await tab.until("job.started")
    for number in range(3):
        site.order(f"before {number}")
        last = await tab.until("thing.done")
        site.proxy.cut()
        site.order(f"during {number}")
        await tab.until("open")
        assert site.streams[-1].cursor == last["id"]
        site.order(f"after {number}")
        await tab.until("thing.done", where=lambda item, n=number: item["data"]["name"] == f"after {n}")  # type: ignore[misc]  # the default binds
    site.order(None)
    await tab.until("job.succeeded")

    assert tab.stored(job_id) == await site.log(job_id)


async def test_a_204_after_the_final_event_stops_an_event_source(open_site: OpenSite, open_tab: OpenTab) -> None:
    """It comes back once, is answered 204, is closed, and asks for nothing while another reconnects three times."""
    site = await open_site()
    first, second = await site.submit(), await site.submit("b")
    tab = await open_tab(site)

    await tab.page.evaluate(_OPEN, f"/bg/jobs/{first}/events")
    await tab.until("job.started")
    site.order(None)
    final = await tab.until("job.succeeded")
    await tab.until("closed")

    asked = [request for request in site.streams if first in request.path]
    assert [(request.status, request.cursor) for request in asked] == [(200, ""), (204, final["id"])]
    await tab.page.evaluate(_OPEN, f"/bg/jobs/{second}/events")
    await tab.until("open")
    for _ in range(3):
        await cut_and_come_back(site, tab)
    assert len([request for request in site.streams if first in request.path]) == len(asked)


async def test_a_restarted_server_goes_on_where_the_other_stopped(open_site: OpenSite, open_tab: OpenTab) -> None:
    """An EventSource lives through the goodbye and the restart, and hears that the job is started again."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.page.evaluate(_OPEN, f"/bg/jobs/{job_id}/events")
    await tab.until("job.started")
    await site.restart()
    await tab.until("job.started")
    site.order(None)
    await tab.until("job.succeeded")

    assert tab.stored(job_id) == await site.log(job_id)
    await until(lambda: not site.open_streams, lambda: site.open_streams)
