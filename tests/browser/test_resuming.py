"""asyncbg.js after a cut, a restart, a new network or from a cursor: no gap, no repeat."""

import pytest

from tests.browser.conftest import OpenSite, OpenTab
from tests.browser.tab import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_cut_connection_is_resumed(open_site: OpenSite, open_tab: OpenTab) -> None:
    """What happens while the network is away is told when it is back, once and in order."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)
    await tab.watch(job_id, "{types: ['thing.done']}")

    for number in range(3):
        site.order(f"before {number}")
        await tab.until("thing.done")
        site.proxy.cut()
        site.order(f"during {number}")
        await tab.until("thing.done")
    site.order(None)
    await tab.until("done")

    assert tab.stored(job_id) == await site.log(job_id)


async def test_a_new_network_gets_a_new_connection(open_site: OpenSite, open_tab: OpenTab) -> None:
    """When the browser is online again it does not wait for the old connection, which may be dead without knowing."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)
    await tab.watch(job_id, "{types: ['thing.done']}")
    site.order("by the log")
    await tab.until("thing.done")
    site.order("by the stream")
    told = await tab.until("thing.done")

    await tab.page.context.set_offline(True)
    await tab.page.context.set_offline(False)
    await until(lambda: len(site.streams) > 1, lambda: site.streams)
    site.order("by the other stream", None)
    await tab.until("done")

    assert f"last_event_id={told['id']}" in site.streams[-1].query
    assert tab.stored(job_id) == await site.log(job_id)


async def test_a_restarted_server_is_found_again(open_site: OpenSite, open_tab: OpenTab) -> None:
    """The watch goes on with what the new server makes of the job: it starts it again."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)
    await tab.watch(job_id)
    await tab.until("job.started")

    await site.restart()
    await tab.until("job.started")
    site.order(None)
    await tab.until("done")

    assert tab.stored(job_id) == await site.log(job_id)


async def test_a_stream_is_opened_with_tickets(open_site: OpenSite, open_tab: OpenTab) -> None:
    """A ticket is good once, so each connection has its own."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.watch(job_id, "{useTickets: true, types: ['thing.done']}")
    site.order("one")
    await tab.until("thing.done")
    site.proxy.cut()
    site.order("two", None)
    await tab.until("done")

    tickets = [request.query.partition("ticket=")[2] for request in site.streams if request.status == 200]
    assert all(tickets)
    assert len(set(tickets)) == len(tickets) > 1
    assert tab.stored(job_id) == await site.log(job_id)


async def test_a_watch_resumes_after_an_event(open_site: OpenSite, open_tab: OpenTab) -> None:
    """`lastEventId` leaves out what was dealt with; after the final event there is only the job itself to ask."""
    site = await open_site()
    job_id = await site.submit()
    site.order(None)
    await site.bg.wait(job_id, 20)
    _, started, succeeded = await site.log(job_id)
    tab = await open_tab(site)

    await tab.watch(job_id, watch_options=f"lastEventId: '{started}'")
    await tab.until("done")
    await tab.watch(job_id, watch_options=f"lastEventId: '{succeeded}'")
    polled = await tab.until("done")

    assert tab.stored(job_id) == [succeeded]
    assert polled["event"]["polled"]


async def test_a_useless_cursor_is_told_as_a_reset(open_site: OpenSite, open_tab: OpenTab) -> None:
    """`onReset` gets the job as it stands; then the watch goes on."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.watch(job_id, watch_options="lastEventId: 'another-3', onReset: (job) => tell({ type: 'reset', job })")
    reset = await tab.until("reset")
    site.order(7)
    await tab.progress(7)
    site.order(None)
    await tab.until("done")

    assert (reset["job"]["id"], reset["job"]["task"]) == (job_id, "obey")


async def test_a_reset_of_a_final_job_ends_the_watch(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Its final event will not come again, so it is made from the job."""
    site = await open_site()
    job_id = await site.submit()
    site.order(None)
    await site.bg.wait(job_id, 20)
    tab = await open_tab(site)

    await tab.watch(job_id, watch_options="lastEventId: 'another-3'")
    done = await tab.until("done")

    assert (done["event"]["type"], done["event"]["polled"]) == ("job.succeeded", True)
