"""Streams over a network that breaks: nothing is lost, nothing comes twice, and nothing ends without saying so."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from asyncbg.client import ApiError, ClientError, RemoteEvent, StreamError, UnreachableError
from asyncbg.errors import JobNotFoundError
from tests.client.conftest import TIMEOUT_S, Connect, Pauses
from tests.client.peer import (
    NO_CONTENT,
    NOTHING,
    Answer,
    Peer,
    Reply,
    Request,
    answer,
    frame,
    frames,
    running_peer,
    stream,
)

STORY = ["job.queued", "job.started", "thing.done", "thing.done", "job.succeeded"]
HELLO = b": asyncbg\nretry: 3000\nid: e-0\n\n"


async def collect(events: AsyncIterator[RemoteEvent], most: int | None = None) -> list[RemoteEvent]:
    """The events to the end, or so many of them."""
    found: list[RemoteEvent] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for event in events:
            found.append(event)
            if len(found) == most:
                break
    return found


def kinds(events: list[RemoteEvent]) -> list[str]:
    """The types of events."""
    return [event.type for event in events]


async def test_a_whole_stream_is_told_to_its_end(connect: Connect) -> None:
    """The events come as values, one connection is enough, and the end of the stream is the end of the iteration."""
    async with running_peer(stream(HELLO, *frames(STORY))) as peer:
        events = await collect((await connect(peer.url)).watch("j1"))

    assert kinds(events) == STORY
    assert [event.id for event in events] == ["e-1", "e-2", "e-3", "e-4", "e-5"]
    assert (events[0].job_id, events[0].task, events[0].batch, events[0].attempt) == ("j1", "work", "j1", 1)
    assert str(events[0].time) == "2026-11-22 10:15:00.250000+00:00"
    assert [event.is_final for event in events] == [False] * 4 + [True]
    assert [request.target for request in peer.requests] == ["/jobs/j1/events"]
    assert peer.requests[0].headers["accept"] == "text/event-stream"


@pytest.mark.parametrize("length", [1, 2, 3, 100, 257, 400, 511, 700])
async def test_a_connection_cut_anywhere_is_resumed_after_the_last_event(connect: Connect, length: int) -> None:
    """Each connection is cut some bytes after its next event; the events come once each, in order."""
    served = frames(STORY)

    def cut(request: Request) -> Answer:
        seen = int(request.headers.get("last-event-id", "e-0").removeprefix("e-"))
        if seen == len(STORY):
            return NO_CONTENT
        rest = b"".join(served[seen:])
        return stream(rest[: len(served[seen]) + length], cut=True)

    async with running_peer(cut) as peer:
        events = await collect((await connect(peer.url)).watch("j1"))

    assert [event.id for event in events] == ["e-1", "e-2", "e-3", "e-4", "e-5"]
    assert len(peer.requests) > 1


async def test_an_end_that_is_not_the_jobs_is_no_end(connect: Connect) -> None:
    """A server that ends the stream before the job's final event is asked again."""
    first, *rest = frames(STORY)
    async with running_peer(stream(first), stream(*rest)) as peer:
        events = await collect((await connect(peer.url)).watch("j1"))

    assert kinds(events) == STORY
    assert peer.cursors == [None, "e-1"]


async def test_a_job_that_was_retried_ends_with_its_last_final_event(connect: Connect) -> None:
    """The replay of such a job has several final events; only the end of the stream tells which is the last."""
    async with running_peer(stream(*frames([*STORY, *STORY]))) as peer:
        events = await collect((await connect(peer.url)).watch("j1"))

    assert kinds(events) == [*STORY, *STORY]


async def test_a_cut_right_after_a_final_event_is_asked_about(connect: Connect) -> None:
    """It might be the first of two; 204 says that it was the last."""
    async with running_peer(stream(*frames(STORY), cut=True), NO_CONTENT) as peer:
        assert kinds(await collect((await connect(peer.url)).watch("j1"))) == STORY

    assert peer.cursors == [None, "e-5"]


async def test_a_server_that_forgets_to_end_the_stream_is_asked_about(connect: Connect) -> None:
    """After a final event a silent stream is opened again: there is nothing more to say."""
    async with running_peer(stream(*frames(STORY), hold=True), NO_CONTENT) as peer:
        assert kinds(await collect((await connect(peer.url, idle_s=0.05)).watch("j1"))) == STORY

    assert peer.cursors == [None, "e-5"]


async def test_no_content_ends_a_jobs_stream(connect: Connect) -> None:
    """204 says that the cursor has seen the end; nobody asks again."""
    async with running_peer(NO_CONTENT) as peer:
        assert await collect((await connect(peer.url)).watch("j1", last_event_id="e-9")) == []

    assert peer.cursors == ["e-9"]


async def test_an_id_alone_is_a_cursor_too(connect: Connect) -> None:
    """The position in a stream's first bytes, or in a heartbeat, is where the next connection goes on."""
    async with running_peer(stream(HELLO, b": heartbeat\nid: e-7\n\n", cut=True), NO_CONTENT) as peer:
        await collect((await connect(peer.url)).watch("j1"))

    assert peer.cursors == [None, "e-7"]


async def test_progress_has_no_id_and_moves_no_cursor(connect: Connect) -> None:
    """It is told, and a connection cut after it goes on from the last stored event."""
    story = [*frames(["job.started"]), frame(0, "job.progress", current=1)]
    async with running_peer(stream(*story, cut=True), stream(*frames(["job.failed"], 2))) as peer:
        events = await collect((await connect(peer.url)).watch("j1"))

    assert [(event.type, event.id) for event in events] == [
        ("job.started", "e-1"),
        ("job.progress", None),
        ("job.failed", "e-2"),
    ]
    assert events[1].data == {"current": 1}
    assert peer.cursors == [None, "e-1"]


async def test_a_reset_is_told(connect: Connect) -> None:
    """The user sees that events may be missing, why, and how the jobs stand; its id is the new cursor."""
    told = frame(0, "stream.reset", reason="foreign", jobs=[{"id": "j1", "state": "succeeded"}], complete=True)
    async with running_peer(stream(b"id: f-40\n" + told), NO_CONTENT) as peer:
        (event,) = await collect((await connect(peer.url)).watch("j1", last_event_id="e-3"))

    assert (event.is_reset, event.data["reason"], event.id) == (True, "foreign", "f-40")
    assert event.data["jobs"] == [{"id": "j1", "state": "succeeded"}]
    assert peer.cursors == ["e-3", "f-40"]


async def test_a_goodbye_is_obeyed_and_not_told(connect: Connect, pauses: Pauses) -> None:
    """A server that stops names the time to come back; the client does, and no sooner."""
    first, *rest = frames(STORY)
    bye = b"retry: 7000\n" + frame(0, "stream.bye", reason="shutdown", retry_ms=7000)
    async with running_peer(stream(HELLO, first, bye), stream(*rest)) as peer:
        assert kinds(await collect((await connect(peer.url)).watch("j1"))) == STORY

    assert len(pauses.seen) == 1
    assert pauses.seen[0] >= 7


async def test_the_reconnection_time_is_honoured_and_spread(connect: Connect, pauses: Pauses) -> None:
    """Clients come back after what the server asked for, each at a time of its own within twice of that."""
    for seed in range(5):
        async with running_peer(stream(HELLO, frame(1, "job.queued"), cut=True), NO_CONTENT) as peer:
            await collect((await connect(peer.url, rng=random.Random(seed))).watch("j1"))

    assert all(3 <= pause <= 6 for pause in pauses.seen)
    assert len(set(pauses.seen)) == 5


@pytest.mark.parametrize(
    ("line", "least_s"), [(b"retry: 250\nretry: soon\n", 0.25), (b"retry: 0\n", 0), (b"retry: 1e9\n", 1)]
)
async def test_a_bogus_reconnection_time_is_ignored(
    connect: Connect, pauses: Pauses, line: bytes, least_s: float
) -> None:
    """The one before holds, or the client's own."""
    async with running_peer(stream(line, frame(1, "job.queued"), cut=True), NO_CONTENT) as peer:
        await collect((await connect(peer.url)).watch("j1"))

    assert least_s <= pauses.seen[0] <= max(least_s * 2, 0.25)


async def test_the_pauses_grow_while_nobody_answers(connect: Connect, pauses: Pauses) -> None:
    """Each failure doubles what chance may add, up to half a minute; the first event starts it anew."""
    replies: list[Reply] = [answer(502)] * 7
    async with running_peer(*replies, stream(*frames(["job.queued"]), cut=True), NO_CONTENT) as peer:
        await collect((await connect(peer.url)).watch("j1"))

    assert pauses.seen == [2, 3, 5, 9, 17, 31, 31, 2]


async def test_an_outage_is_warned_of_once(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """Reconnects belong to everyday life; one that does not come about is worth a line in the log."""
    async with running_peer(*[answer(502)] * 7, stream(*frames(STORY))) as peer:
        await collect((await connect(peer.url)).watch("j1"))

    (record,) = [record for record in caplog.records if record.name.startswith("asyncbg.client")]
    assert record.levelname == "WARNING"
    assert "an event stream is resumed in 5.0 s: 502" in record.getMessage()


async def test_a_server_that_only_says_hello_is_not_pestered(connect: Connect, pauses: Pauses) -> None:
    """Connections that end at once without an event count as failures."""
    async with running_peer(*[stream(b"retry: 0\nid: e-1\n\n")] * 4, NO_CONTENT) as peer:
        await collect((await connect(peer.url)).watch("j1"))

    assert pauses.seen == [0.25, 0.5, 1, 2]


async def test_a_refusal_for_now_is_asked_again_when_it_says(connect: Connect, pauses: Pauses) -> None:
    """503 with Retry-After, from a service at its limit or a proxy without one behind it, ends nothing."""
    busy = answer(503, b"<html>", headers={"Retry-After": "40"})
    async with running_peer(answer(502, b"bad gateway"), busy, stream(*frames(STORY))) as peer:
        assert kinds(await collect((await connect(peer.url)).watch("j1"))) == STORY

    assert pauses.seen[1] >= 40


async def test_a_silent_stream_is_opened_again(connect: Connect) -> None:
    """A connection that died without a word is noticed when no heartbeat comes."""
    first, *rest = frames(STORY)
    async with running_peer(stream(first, hold=True), stream(*rest)) as peer:
        assert kinds(await collect((await connect(peer.url, idle_s=0.05)).watch("j1"))) == STORY

    assert peer.cursors == [None, "e-1"]


async def test_a_server_that_accepts_and_says_nothing_is_left(connect: Connect) -> None:
    """The head of the answer has its deadline as well."""
    async with running_peer(Answer(b"", hold=True), stream(*frames(STORY))) as peer:
        assert kinds(await collect((await connect(peer.url, timeout_s=0.05)).watch("j1"))) == STORY


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
async def test_a_refusal_for_good_is_raised(connect: Connect, pauses: Pauses, status: int) -> None:
    """Neither stream asks again; the error says what the service said."""
    async with running_peer(answer(status, {"title": "No", "detail": "not you", "status": status})) as peer:
        client = await connect(peer.url)
        for events in (client.watch("j1"), client.events()):
            with pytest.raises(ApiError, match=f"{status} No: not you"):
                await collect(events)

    assert pauses.seen == []


async def test_a_job_that_is_purged_meanwhile_is_an_error(connect: Connect) -> None:
    """The stream does not end as if all had been told."""
    gone = answer(404, {"type": "urn:problem-type:asyncbg:job-not-found", "title": "Job not found"})
    async with running_peer(stream(*frames(["job.queued"]), cut=True), gone) as peer:
        with pytest.raises(JobNotFoundError, match="'j1'"):
            await collect((await connect(peer.url)).watch("j1"))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer(200, b"<html>", headers={"Content-Type": "text/html"}), "text/html and no event stream.*base_url"),
        (stream(b"data: hello\n\n"), "'message'.*no event"),
        (stream(b"event: job.queued\ndata: [1]\n\n"), "'job.queued'.*no event"),
        (stream(b"data: " + b"x" * 2_000), "larger than 1000 bytes"),
    ],
)
async def test_what_is_no_stream_of_ours_is_an_error(connect: Connect, reply: Answer, words: str) -> None:
    """To ask again would bring the same, so it is raised."""
    async with running_peer(reply) as peer:
        client = await connect(peer.url, max_frame_bytes=1_000)
        with pytest.raises(StreamError, match=words):
            await collect(client.watch("j1"))


async def test_a_stream_that_moved_is_an_error(connect: Connect) -> None:
    """A redirect is not followed, since the key would go with it; the error names the place."""
    async with running_peer(answer(307, headers={"Location": "https://elsewhere/bg"})) as peer:
        with pytest.raises(ApiError, match="redirects to https://elsewhere/bg"):
            await collect((await connect(peer.url)).events())


async def test_a_service_away_too_long_is_given_up_where_asked_for(connect: Connect, pauses: Pauses) -> None:
    """The error has the cursor to go on with another time; without a bound it would try for ever."""
    async with running_peer(stream(*frames(["job.queued"]), cut=True), NOTHING) as peer:
        client = await connect(peer.url, give_up_after_s=60)
        events = client.watch("j1")
        assert (await anext(events)).type == "job.queued"
        with pytest.raises(UnreachableError, match="no whole answer from") as caught:
            await collect(events)

    assert caught.value.last_event_id == "e-1"
    assert sum(pauses.seen) <= 60


async def test_a_service_that_is_not_there_yet_is_waited_for(connect: Connect, pauses: Pauses) -> None:
    """A refused connection is asked again, so a client may be started before the service."""
    async with running_peer(NO_CONTENT) as peer:
        pass
    client = await connect(peer.url)
    async with contextlib.AsyncExitStack() as stack:
        waiting = asyncio.create_task(collect(client.watch("j1")))
        async with asyncio.timeout(TIMEOUT_S):
            while len(pauses.seen) < 3:  # noqa: ASYNC110 - seen from outside, there is no event to await
                await asyncio.sleep(0)
        await stack.enter_async_context(running_peer(stream(*frames(STORY)), port=peer.port))
        assert kinds(await waiting) == STORY


async def test_the_stream_of_all_never_ends_by_itself(connect: Connect) -> None:
    """A final event ends a job, not the stream of many; a clean end is asked again like a cut."""
    replies = [stream(*frames(STORY)), stream(frame(6, "job.queued"), cut=True), stream(frame(7, "job.started"))]
    async with running_peer(*replies) as peer:
        client = await connect(peer.url)
        async with contextlib.aclosing(client.events()) as events:
            assert kinds(await collect(events, 7)) == [*STORY, "job.queued", "job.started"]

    assert peer.cursors == [None, "e-5", "e-6"]


async def test_the_stream_of_all_does_not_end_silently(connect: Connect) -> None:
    """A 204 to a stream without an end is nothing to pass over."""
    async with running_peer(NO_CONTENT) as peer:
        with pytest.raises(StreamError, match="204"):
            await collect((await connect(peer.url)).events())


async def test_the_filters_are_sent(connect: Connect) -> None:
    """One word or several, and nothing for what is not filtered; the cursor goes with the first request."""
    async with running_peer(stream(*frames(["job.failed"]))) as peer:
        client = await connect(peer.url + "/bg/")
        events = client.events(type=["job.failed", "thing.*"], task="a&b", owner="ada", last_event_id="e-9")
        async with contextlib.aclosing(events):
            await collect(events, 1)

    assert peer.requests[0].target == "/bg/events?task=a%26b&type=job.failed&type=thing.*&owner=ada"
    assert peer.cursors == ["e-9"]


async def test_a_watcher_that_stops_hangs_up(connect: Connect) -> None:
    """Closing the iterator closes the connection; the client goes on."""
    async with running_peer(stream(*frames(["job.queued"]), hold=True)) as peer:
        async with contextlib.aclosing((await connect(peer.url)).watch("j1")) as events:
            await anext(events)
        async with asyncio.timeout(TIMEOUT_S):
            await peer.left.wait()


async def test_a_watcher_that_is_cancelled_hangs_up(connect: Connect) -> None:
    """Cancellation goes through, whatever the stream waits for."""
    async with running_peer(stream(*frames(["job.queued"]), hold=True)) as peer:
        client = await connect(peer.url)
        watching = asyncio.create_task(collect(client.watch("j1")))
        await _asked(peer)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        async with asyncio.timeout(TIMEOUT_S):
            await peer.left.wait()


async def _asked(peer: Peer) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not peer.requests:  # noqa: ASYNC110 - seen from outside, there is no event to await
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("cursor", ["e-1\n", "e\r1", "\0"])
async def test_a_cursor_no_header_can_carry_is_refused(connect: Connect, cursor: str) -> None:
    """Before anything is sent."""
    client = await connect("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="last_event_id"):
        client.watch("j1", last_event_id=cursor)


async def test_a_stream_of_a_closed_client_says_so(connect: Connect) -> None:
    """It does not try for ever."""
    async with running_peer(stream(*frames(["job.queued"]))) as peer:
        client = await connect(peer.url)
        events = client.events()
        await anext(events)
        await client.__aexit__(None, None, None)
        with pytest.raises(ClientError, match="not open"):
            await collect(events)
