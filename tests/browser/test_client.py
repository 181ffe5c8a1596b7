"""asyncbg.js in Chromium: one connection for all tabs, nothing lost or repeated, polling where streams are refused."""

import pytest

from tests.browser.conftest import OpenSite, OpenTab, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_watch_tells_a_job_from_its_first_event_to_its_last(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Callbacks get the stored events once and in order, the progress between them, and `done` the final event."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.watch(job_id)
    site.order(3)
    await tab.progress(3)
    site.order(10, None)
    done = await tab.until("done")

    assert done["event"]["type"] == "job.succeeded"
    assert tab.stored(job_id) == await site.log(job_id)
    assert [item["type"] for item in tab.seen if item["type"] != "job.progress"] == [
        "job.queued",
        "job.started",
        "job.succeeded",
        "done",
    ]
    assert not tab.noise


async def test_a_watch_is_an_async_iterator(open_site: OpenSite, open_tab: OpenTab) -> None:
    """`for await` gets the same events, and ends with the job."""
    site = await open_site()
    job_id = await site.submit()
    site.order("one", "two", None)
    await site.bg.wait(job_id, 20)
    tab = await open_tab(site)

    types = await tab.page.evaluate(
        """async (jobId) => {
          const { watch } = await import("/bg/asyncbg.js");
          const types = [];
          for await (const event of watch(jobId)) types.push(event.type);
          return types;
        }""",
        job_id,
    )

    assert types == ["job.queued", "job.started", "thing.done", "thing.done", "job.succeeded"]


async def test_leaving_the_loop_closes_the_connection(open_site: OpenSite, open_tab: OpenTab) -> None:
    """`break` ends the watch, and with the last watch the stream."""
    site = await open_site()
    job_id = await site.submit()
    tab = await open_tab(site)

    await tab.page.evaluate(
        """async (jobId) => {
          const { watch } = await import("/bg/asyncbg.js");
          for await (const event of watch(jobId)) if (event.type === "job.started") break;
        }""",
        job_id,
    )

    await until(lambda: not site.open_streams, lambda: site.open_streams)


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

    assert len(site.open_streams) == len(tabs)


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


async def test_an_unknown_job_is_an_error_that_names_it(open_site: OpenSite, open_tab: OpenTab) -> None:
    """`done` rejects with the status and what the service said."""
    site = await open_site()
    tab = await open_tab(site)

    await tab.watch("018f3a5e-7b1c-7def-8a90-123456789abc")
    failed = await tab.until("failed")

    assert failed["status"] == 404
    assert "018f3a5e-7b1c-7def-8a90-123456789abc" in failed["message"]
    assert "there is no such job" in failed["message"]


async def test_jobs_are_submitted_looked_at_and_changed(open_site: OpenSite, open_tab: OpenTab) -> None:
    """The calls that are no streams: submit, get, wait, cancel, retry and list."""
    site = await open_site()
    await site.submit()
    tab = await open_tab(site)
    site.order(None, None, None)

    states = await tab.page.evaluate(
        """async () => {
          const { AsyncBG } = await import("/bg/asyncbg.js");
          const bg = new AsyncBG();
          const { id } = await bg.submit("obey", { name: "a" }, { idempotencyKey: "k", tags: ["t"] });
          const again = await bg.submit("obey", { name: "a" }, { idempotencyKey: "k", tags: ["t"] });
          const final = await bg.wait(id);
          await bg.retry(id);
          const second = await bg.wait(id, { timeoutMs: 20000 });
          const { items } = await bg.list({ tag: "t", limit: 5 });
          const later = await bg.submit("obey", { name: "a" }, { delayS: 1000 });
          const { state } = await bg.cancel(later.id, { reason: "enough" });
          const refused = await bg.cancel(id).catch((error) => error.problem.type);
          const late = await bg.wait((await bg.submit("obey", {name: "a"}, {delayS: 1000})).id, {timeoutMs: 1}).catch(String);
          return [again.id === id, final.result, second.state, items[0].id === id, state, refused, late.slice(0, 16)];
        }"""  # noqa: E501
    )

    job_state = "urn:problem-type:asyncbg:job-state"
    assert states == [True, "done", "succeeded", True, "cancelled", job_state, "AsyncBGError: jo"]


async def test_bad_input_is_refused_with_the_remedy(open_site: OpenSite, open_tab: OpenTab) -> None:
    """What is no job's id, an option that does not exist."""
    site = await open_site()
    tab = await open_tab(site)

    messages = await tab.page.evaluate(
        """async () => {
          const { AsyncBG, watch } = await import("/bg/asyncbg.js");
          const message = (call) => { try { call(); } catch (error) { return error.message; } };
          return [message(() => watch(undefined)), message(() => watch({ id: 1 })), message(() => new AsyncBG({ url: "/" }))];
        }"""  # noqa: E501
    )

    assert messages[0] == "a job is named by its id, a string, not by undefined"
    assert messages[1] == 'a job is named by its id, a string, not by {"id":1}'
    assert messages[2].startswith('AsyncBG has no option "url"; it has baseUrl, share,')


async def test_a_callback_that_throws_stops_nothing(open_site: OpenSite, open_tab: OpenTab) -> None:
    """Its error is reported like any other of the page, and the watch goes on."""
    site = await open_site()
    job_id = await site.submit()
    site.order(None)
    tab = await open_tab(site)

    await tab.watch(job_id, watch_options="onProgress: tell, onFinal: () => { throw new Error('mine'); }")
    await tab.until("done")

    await until(lambda: "mine" in tab.noise, lambda: tab.noise)
