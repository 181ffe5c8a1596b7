"""asyncbg.js in several tabs and on several jobs: one connection, handed on when its tab closes."""

import pytest

from tests.browser.conftest import OpenSite, OpenTab
from tests.browser.tab import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_two_tabs_share_one_connection_and_the_second_inherits_it(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Each tab follows its own job and one they share over one stream; when the first closes, nothing is lost."""
    site = await open_site()
    shared, own, other = await site.submit("shared"), await site.submit("own"), await site.submit("other")
    first, second = await open_tab(site), await open_tab(site)
    options = "{types: ['thing.done']}"
    await first.watch(shared, options)
    await first.watch(own, options)
    await first.until("job.started")
    await first.until("job.started")
    await second.watch(shared, options)
    await second.watch(other, options)
    await second.until("job.started")
    await second.until("job.started")

    site.order("to both", name="shared")
    assert (await first.until("thing.done"))["id"] == (await second.until("thing.done"))["id"]
    (stream,) = site.open_streams
    assert all(job_id in stream.query for job_id in (shared, own, other))

    site.order("while it closes", name="shared")
    await first.page.close()
    site.order("while nobody listens", name="other")
    await until(lambda: not stream.is_open, lambda: site.streams)
    site.order("after", None, name="shared")
    site.order(None, name="other")
    await second.until("done")
    await second.until("done")

    assert second.stored(shared) == await site.log(shared)
    assert second.stored(other) == await site.log(other)
    assert not second.noise


async def test_a_tab_that_may_not_share_has_a_connection_of_its_own(open_site: OpenSite, open_tab: OpenTab) -> None:
    """`share: false` costs one stream a tab, for all jobs watched in it."""
    site = await open_site()
    jobs = [await site.submit("a"), await site.submit("b")]
    tabs = [await open_tab(site), await open_tab(site)]

    for tab in tabs:
        for job_id in jobs:
            await tab.watch(job_id, "{share: false}")
        await tab.until("job.started")
        await tab.until("job.started")

    await until(lambda: len(site.open_streams) == len(tabs), lambda: site.open_streams)  # closed ones are known later


_REOPENED = """async () => {
  const { AsyncBG } = await import("/bg/asyncbg.js");
  const log = [1], told = [], sources = [];
  const time = "2026-01-01T00:00:00Z";
  const frame = (seq) => ({ id: `e-${seq}`, time, subject: "a", type: "job.started", data: {} });
  class Source {
    static CLOSED = 2;
    heard = {};
    constructor(url) { this.from = new URL(url).searchParams.get("last_event_id"); sources.push(this); }
    addEventListener(type, listener) { this.heard[type] = listener; }
    close() { this.isClosed = true; }
    tell(seq) { this.heard["job.started"]({ data: JSON.stringify(frame(seq)), lastEventId: `e-${seq}` }); }
  }
  const stored = async (url) => {
    const after = Number((new URL(url).searchParams.get("last_event_id") ?? "e-0").slice(2));
    const missed = url.includes("/jobs/a/") ? log.filter((seq) => seq > after) : [];
    return new Response(missed.map((seq) => `id: e-${seq}\\ndata: ${JSON.stringify(frame(seq))}\\n\\n`).join(""));
  };
  const until = async (is) => { while (!is()) await new Promise((resolve) => setTimeout(resolve, 1)); };
  const bg = new AsyncBG({ share: false, fetch: stored, EventSource: Source });
  bg.watch("a", { onEvent: ({ id }) => told.push(id) });
  await until(() => sources.length === 1);
  sources[0].onopen();
  await until(() => told.length === 1); // it is live now, and no stream has told anything yet
  bg.watch("b");
  await until(() => sources.length === 2); // which begins when it is opened
  log.push(2, 3);
  bg.watch("c");
  sources[1].onopen(); // to be opened once more, for the third
  sources[1].tell(3);
  await until(() => told.includes("e-3"));
  bg.close();
  return told;
}"""


async def test_what_happens_between_two_streams_is_read_from_the_log(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Also when the second is opened anew at once, for a third job."""
    tab = await open_tab(await open_site())

    assert await tab.page.evaluate(_REOPENED) == ["e-1", "e-2", "e-3"]


async def test_a_job_watched_later_misses_nothing(open_site: OpenSite, open_tab: OpenTab) -> None:
    """While one job tells much, others join its stream: each is told from its first event, none repeats."""
    site = await open_site()
    tab = await open_tab(site)
    jobs = {name: await site.submit(name) for name in "abcde"}

    for name, job_id in jobs.items():
        await tab.watch(job_id, "{types: ['thing.done']}")
        for known in jobs:
            site.order(*(f"{name} {number}" for number in range(20)), name=known)
    for name in jobs:
        site.order(None, name=name)
    for _ in jobs:
        await tab.until("done")

    for job_id in jobs.values():
        assert tab.stored(job_id) == await site.log(job_id)
