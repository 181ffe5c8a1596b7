"""asyncbg.js in Chromium: a job followed from its first event to its last, and the calls that are no streams."""

import pytest

from tests.browser.conftest import OpenSite, OpenTab
from tests.browser.tab import until

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
