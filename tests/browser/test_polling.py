"""asyncbg.js where streams cannot be had: it polls, says so, and comes back to them."""

import pytest

from tests.browser.conftest import OpenSite, OpenTab
from tests.browser.tab import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_where_streams_are_refused_a_watch_polls(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Progress and the final event are made from the job, and say so."""
    site = await open_site()
    site.refuses_streams = True
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.watch(job_id)
    site.order(4)
    progress = await tab.progress(4)
    site.order(None)
    done = await tab.until("done")

    assert progress["polled"]
    assert done["event"] | {"time": ""} == {
        "id": None,
        "type": "job.succeeded",
        "time": "",
        "subject": job_id,
        "task": "obey",
        "batch": job_id,
        "owner": "anonymous",
        "attempt": 1,
        "data": {},
        "polled": True,
    }


async def test_streams_are_tried_again(open_site: OpenSite, open_tab: OpenTab) -> None:
    """When they are served again each watch goes on with the stored events, from the first."""
    site = await open_site()
    site.refuses_streams = True
    jobs = {name: await site.submit(name) for name in "ab"}
    tab = await open_tab(site)
    for name, job_id in jobs.items():
        await tab.watch(job_id)
        site.order(4, name=name)
        await tab.progress(4)

    site.refuses_streams = False
    for _ in jobs:
        await tab.until("job.started")
    for name in jobs:
        site.order(None, name=name)
    for _ in jobs:
        assert "polled" not in (await tab.until("done"))["event"]

    for job_id in jobs.values():
        assert tab.stored(job_id) == await site.log(job_id)


async def test_the_end_is_left_to_a_log_that_is_being_read(open_site: OpenSite, open_tab: OpenTab) -> None:
    """A poll that learns of it first would lose what came before it."""
    site = await open_site()
    site.refuses_streams = True
    job_id = await site.submit()
    tab = await open_tab(site)
    await tab.page.evaluate("""() => {
      const { promise, resolve } = Promise.withResolvers();
      globalThis.slowLog = async (url, request) => {
        const answer = await fetch(url, request);
        if (url.includes("follow=false")) await promise;
        else if ((await answer.clone().json()).state === "succeeded") setTimeout(resolve, 200);
        return answer;
      };
    }""")
    await tab.watch(job_id, "{types: ['thing.done'], fetch: slowLog}")
    site.order(1)
    await tab.progress(1)

    site.refuses_streams = False
    await until(lambda: any("follow=false" in r.query and r.status for r in site.requests), lambda: site.requests)
    site.order("one", None)
    await tab.until("done")

    assert tab.stored(job_id) == await site.log(job_id)


async def test_without_an_event_source_a_watch_polls(open_site: OpenSite, open_tab: OpenTab) -> None:
    """A failure is told with its error."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)
    await tab.page.evaluate("delete globalThis.EventSource")

    await tab.watch(job_id)
    site.order(2)
    await tab.progress(2)
    site.order(ValueError("no such luck"))
    done = await tab.until("done")

    assert done["event"]["type"] == "job.failed"
    assert done["event"]["data"] == {"error": {"type": "ValueError", "message": "no such luck"}}
    assert not site.streams
