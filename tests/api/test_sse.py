"""Event streams over a real server: complete, in order, bounded, and polite at the end."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI

from asyncbg.core.event import Event, EventFilter
from asyncbg.engine.context import current_job
from asyncbg.engine.progress import Progress
from asyncbg.fastapi import AsyncBG
from asyncbg.settings import RunnerSettings, Settings, StreamSettings
from asyncbg.streams.stream_query import StreamQuery
from asyncbg.streams.streams import Streams
from asyncbg.testing import serve as running

TIMEOUT_S = 20


@dataclass
class Frame:
    """One block of a stream: what its lines said."""

    event: str = ""
    id: str = ""
    retry: str = ""
    comment: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, block: str) -> "Frame":
        """Read a block as a browser would."""
        frame = cls()
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                frame.data = json.loads(value)
            else:
                setattr(frame, name or "comment", value)
        return frame


class Reader:
    """A client of one stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        """Read ``response``."""
        self.response = response
        self._text = ""

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Every frame until the server ends the stream."""
        while True:
            while "\n\n" in self._text:
                block, _, self._text = self._text.partition("\n\n")
                yield Frame.parse(block)
            chunk = await self.response.content.readany()
            if not chunk:
                assert "data:" not in self._text, "the stream ended inside a frame"
                return
            self._text += chunk.decode()

    async def next(self, event: str = "") -> Frame:
        """The next frame, or the next one of that type."""
        async with asyncio.timeout(TIMEOUT_S):
            async for frame in self:
                if not event or frame.event == event:
                    return frame
        raise AssertionError(f"the stream ended without {event or 'another frame'}")

    async def rest(self) -> list[Frame]:
        """All events until the stream ends."""
        async with asyncio.timeout(TIMEOUT_S):
            return [frame async for frame in self if frame.event]


@dataclass
class Service:
    """A running application with tasks that do as they are told."""

    bg: AsyncBG
    session: aiohttp.ClientSession
    base: str
    gate: asyncio.Event

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, cursor: str | None = None, encoding: str = "identity"
    ) -> AsyncIterator[Reader]:
        """Open a stream that must be answered 200."""
        headers = {"Accept-Encoding": encoding} | ({"Last-Event-ID": cursor} if cursor else {})
        async with self.session.get(self.base + path, headers=headers) as response:
            assert response.status == 200, await response.text()
            yield Reader(response)

    async def log(self, **wanted: Any) -> list[Event]:
        """All stored events."""
        events, _ = await self.bg.backend.events(after_seq=0, wanted=EventFilter(**wanted), limit=100_000)
        return list(events)

    async def final(self, name: str = "work", **args: Any) -> str:
        """A job that has run."""
        job = await self.bg.submit(name, args, owner="anonymous")
        await self.bg.wait(job.id, TIMEOUT_S)
        return job.id

    async def held(self) -> str:
        """A job that runs until the gate opens."""
        return (await self.bg.submit("hold", {}, owner="anonymous")).id

    def cursor(self, seq: int) -> str:
        """The wire id of an event."""
        return f"{self.bg.backend.epoch}-{seq}"


Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start a service with the given stream settings on a free port."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**stream: Any) -> Service:
            settings = Settings(
                database_url=f"sqlite:///{tmp_path}/asyncbg.db",
                stream=StreamSettings(**stream),
                runner=RunnerSettings(shutdown_grace_s=0, watchdog_s=0),  # the tests share the loop and may hold it
            )
            bg = AsyncBG(settings)
            gate = asyncio.Event()
            register_tasks(bg, gate)
            app = FastAPI(lifespan=bg.lifespan)
            app.include_router(bg.router, prefix="/bg")
            base = (await stack.enter_async_context(running(app))).url
            session = await stack.enter_async_context(aiohttp.ClientSession())
            stack.callback(gate.set)
            return Service(bg, session, f"{base}/bg", gate)

        yield start


def register_tasks(bg: AsyncBG, gate: asyncio.Event) -> None:
    """Tasks that end at once, wait for the gate, report much or announce much."""

    @bg.task(name="work")
    async def work() -> None:
        pass

    @bg.task(name="hold")
    async def hold(progress: Progress = Progress()) -> None:
        progress.set(1, total=2, message="half")
        await gate.wait()
        progress.set(2, total=2, message="whole")

    @bg.task(name="announce")
    async def announce(count: int) -> None:
        await asyncio.gather(*(current_job().publish("thing.done", {"n": n}) for n in range(count)))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task of this process brings about."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - seen from outside, there is no event to await
            await asyncio.sleep(0.005)


async def test_the_first_bytes_say_where_the_stream_is(serve: Serve) -> None:
    """A stream begins at once with a comment, the retry time and an id, under headers no proxy buffers."""
    service = await serve(retry_ms=1234)
    await service.final()
    last = (await service.log())[-1]

    async with service.stream("/events") as reader:
        first = await reader.response.content.readany()

        assert first == f": asyncbg\nretry: 1234\nid: {service.cursor(last.seq)}\n".encode()
        headers = reader.response.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "no-cache, no-transform"
        assert headers["X-Accel-Buffering"] == "no"


async def test_a_job_stream_tells_the_whole_story_and_ends(serve: Serve) -> None:
    """Without a cursor a job's stream starts with its first event and ends after its final one."""
    service = await serve()
    job_id = await service.final()

    async with service.stream(f"/jobs/{job_id}/events") as reader:
        frames = await reader.rest()

    assert [frame.event for frame in frames] == ["job.queued", "job.started", "job.succeeded"]
    assert [frame.id for frame in frames] == [service.cursor(event.seq) for event in await service.log()]
    assert frames[0].data["subject"] == job_id
    assert set(frames[0].data) == {"id", "type", "time", "subject", "task", "batch", "owner", "attempt", "data"}


async def test_the_latest_progress_is_told_on_arrival_and_before_the_end(serve: Serve) -> None:
    """Who comes in the middle sees how far the job is; the last progress always comes before the final event."""
    service = await serve()
    job_id = await service.held()
    async with service.stream(f"/jobs/{job_id}/events") as early:
        await early.next("job.progress")
        async with service.stream(f"/jobs/{job_id}/events") as late:
            first = [await late.next(), await late.next(), await late.next()]
            service.gate.set()
            rest = await late.rest()

    assert [frame.event for frame in first] == ["job.queued", "job.started", "job.progress"]
    assert first[2].data["data"]["message"] == "half"
    assert not first[2].id
    assert [frame.event for frame in rest] == ["job.progress", "job.succeeded"]
    assert rest[0].data["data"]["message"] == "whole"


async def test_the_replay_of_a_finished_job_ends_with_its_final_event(serve: Serve) -> None:
    """The kept progress is told once, right before the end."""
    service = await serve()
    service.gate.set()
    job_id = await service.final("hold")

    async with service.stream(f"/jobs/{job_id}/events") as reader:
        assert [frame.event for frame in await reader.rest()][2:] == ["job.progress", "job.succeeded"]


async def test_a_cursor_continues_exactly_after_its_event(serve: Serve) -> None:
    """From whatever stored event a client comes back, it gets all later ones once, and 204 after the final one."""
    service = await serve()
    job_id = await service.final("announce", count=5)
    log = await service.log()

    for place, event in enumerate(log[:-1]):
        async with service.stream(f"/jobs/{job_id}/events", cursor=service.cursor(event.seq)) as reader:
            frames = await reader.rest()
        assert [frame.id for frame in frames] == [service.cursor(later.seq) for later in log[place + 1 :]]

    headers = {"Last-Event-ID": service.cursor(log[-1].seq)}
    async with service.session.get(f"{service.base}/jobs/{job_id}/events", headers=headers) as response:
        assert response.status == 204


async def test_the_cursor_in_the_header_wins(serve: Serve) -> None:
    """A browser reconnects to the URL it was given, with a newer cursor in the header."""
    service = await serve()
    job_id = await service.final()
    queued, started, _ = await service.log()
    path = f"/jobs/{job_id}/events?last_event_id={service.cursor(queued.seq)}"

    async with service.stream(path) as reader:
        assert [frame.event for frame in await reader.rest()] == ["job.started", "job.succeeded"]
    async with service.stream(path, cursor=service.cursor(started.seq)) as reader:
        assert [frame.event for frame in await reader.rest()] == ["job.succeeded"]


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        ("garbage", "malformed"),
        ("{epoch}-", "malformed"),
        ("{epoch}--1", "malformed"),
        ("{epoch}-1e3", "malformed"),
        ("\u00e4" * 300, "malformed"),
        ("another-3", "foreign"),
        ("{epoch}-999999", "unreachable"),
        ("{epoch}-999999999999999999", "unreachable"),
    ],
)
@pytest.mark.parametrize("in_header", [True, False])
async def test_a_useless_cursor_is_answered_with_a_reset(
    serve: Serve, cursor: str, reason: str, in_header: bool
) -> None:
    """It gets one stream.reset with the reason and the jobs as they stand, then goes on live; never a 4xx."""
    service = await serve()
    job_id = await service.final()
    cursor = cursor.replace("{epoch}", service.bg.backend.epoch)
    query = "" if in_header else f"?last_event_id={cursor}"

    async with service.stream(f"/jobs/{job_id}/events{query}", cursor=cursor if in_header else None) as reader:
        (frame,) = await reader.rest()
    assert frame.event == "stream.reset"
    assert frame.data["data"]["reason"] == reason
    assert [(job["id"], job["state"]) for job in frame.data["data"]["jobs"]] == [(job_id, "succeeded")]

    async with service.stream(f"/events{query}", cursor=cursor if in_header else None) as reader:
        frame = await reader.next("stream.reset")
        assert [job["id"] for job in frame.data["data"]["jobs"]] == [job_id]
        fresh = await service.final()
        assert (await reader.next("job.queued")).data["subject"] == fresh


async def test_a_cursor_older_than_the_log_is_reset_but_a_job_keeps_its_own(serve: Serve) -> None:
    """Where events were purged a stream of many jobs says so; a job that is still there has all its events."""
    service = await serve()
    held = await service.held()
    await service.final()
    await service.bg.backend.purge(before_ms=service.bg.clock.now_ms() + 1, limit=10)

    async with service.stream("/events", cursor=service.cursor(0)) as reader:
        frame = await reader.next("stream.reset")
        assert frame.data["data"]["reason"] == "unreachable"
        assert [job["id"] for job in frame.data["data"]["jobs"]] == [held]
    async with service.stream(f"/jobs/{held}/events", cursor=service.cursor(0)) as reader:
        assert (await reader.next("job.queued")).data["subject"] == held


async def test_events_without_a_cursor_start_now_and_are_filtered(serve: Serve) -> None:
    """What was before is not told; type, task, job, batch and owner narrow what comes."""
    service = await serve()
    await service.final()
    async with contextlib.AsyncExitStack() as stack:
        failed = await stack.enter_async_context(service.stream("/events?type=job.failed,thing.*"))
        task = await stack.enter_async_context(service.stream("/events?task=announce&type=job.*"))
        owned = await stack.enter_async_context(service.stream("/events?owner=nobody&type=*"))
        for reader in (failed, task, owned):
            await reader.next()
        job_id = await service.final("announce", count=1)
        batch = await stack.enter_async_context(service.stream(f"/events?batch={job_id}&follow=false"))

        assert (await failed.next()).event == "thing.done"
        assert [(await task.next()).event for _ in range(3)] == ["job.queued", "job.started", "job.succeeded"]
        assert {frame.data["subject"] for frame in await batch.rest()} == {job_id}
        service.bg._streams.drain()
        assert [frame.event for frame in await owned.rest()] == ["stream.bye"]


async def test_a_malformed_type_is_refused(serve: Serve) -> None:
    """A filter that can match nothing is a mistake worth telling, without echoing it."""
    service = await serve()
    async with service.session.get(service.base + "/events?type=[a,b]") as response:
        assert response.status == 422
        assert response.content_type == "application/problem+json"


async def test_without_follow_a_stream_sends_what_is_stored_and_closes(serve: Serve) -> None:
    """Everything stored, from the first event or the cursor, of jobs that may still run."""
    service = await serve()
    done = await service.final()
    held = await service.held()
    async with service.stream(f"/jobs/{held}/events") as reader:
        await reader.next("job.progress")

    async with service.stream("/events?follow=false") as reader:
        assert [frame.id for frame in await reader.rest()] == [service.cursor(e.seq) for e in await service.log()]
    async with service.stream(f"/events?follow=false&job={done}", cursor=service.cursor(2)) as reader:
        assert [frame.event for frame in await reader.rest()] == ["job.succeeded"]
    async with service.stream(f"/jobs/{held}/events?follow=false") as reader:
        assert [f.event for f in await reader.rest()] == ["job.queued", "job.started", "job.progress"]


async def test_an_unknown_job_is_not_found(serve: Serve) -> None:
    """A problem document, not an empty stream."""
    service = await serve()
    async with service.session.get(service.base + "/jobs/nope/events") as response:
        assert response.status == 404
        assert response.content_type == "application/problem+json"


async def test_an_idle_stream_gets_comments_and_keeps_its_place(serve: Serve) -> None:
    """The heartbeat is a comment; where the log went on without the client, an event tells the position."""
    service = await serve(heartbeat_s=0.05)
    async with service.stream("/events?task=none") as reader:
        first = await reader.next()
        assert (first.event, first.data["reason"]) == ("stream.position", "start")

        await service.final()
        last = (await service.log())[-1]
        async with asyncio.timeout(TIMEOUT_S):
            async for frame in reader:
                assert (frame.event, frame.data["reason"]) == ("stream.position", "idle")
                if frame.id == service.cursor(last.seq):
                    break
        assert first.id != frame.id
        assert b": heartbeat\n" in await reader.response.content.readany()


def dispatched(lines: list[str]) -> list[dict[str, str]]:
    """What httpx-sse and fetch-event-source hand on: every block with a field in it, whether it has data or not."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.removeprefix(" ")
        elif not line:
            found.append(fields)  # also of an empty one: the last id is remembered, and counts as one
            fields = {}
    return found


async def test_no_block_is_without_data(serve: Serve) -> None:
    """A client that hands on every block hands on JSON only: at the start, while idle, at a reset and at the end."""
    service = await serve(heartbeat_s=0.05, max_age_s=0.5)
    job_id = await service.final()
    for path, cursor in (
        ("/events", None), ("/events?task=none", None), ("/events", service.cursor(1)), ("/events", "foreign-1"),
        ("/events?follow=false", None), ("/events?follow=false&task=none", None), (f"/jobs/{job_id}/events", None),
        (f"/jobs/{await service.held()}/events", None), (f"/jobs/{await service.held()}/events", "x"),
    ):  # fmt: skip
        async with service.stream(path, cursor=cursor) as reader:
            text = (await reader.response.content.read()).decode()
        for block in dispatched(text.split("\n")[:-1]):
            assert json.loads(block["data"])["type"] == block["event"], path
    service.gate.set()


async def test_a_stream_that_was_cut_before_anything_happened_misses_nothing(serve: Serve) -> None:
    """It tells where it started, if nothing else does, so that a browser's EventSource comes back with a cursor."""
    service = await serve()
    async with service.stream("/events") as reader:
        frame = await reader.next()
    missed = await service.final()
    async with service.stream("/events", cursor=frame.id) as reader:
        back = await reader.next()

    assert frame.event == "stream.position"
    assert (back.event, back.data["subject"]) == ("job.queued", missed)


async def test_the_position_is_told_before_what_follows_it(serve: Serve) -> None:
    """Also where progress and the final event come with it: a client drops an event whose id it has had already."""
    service = await serve()
    job_id = await service.held()
    await until(lambda: service.bg.bus.last_seq > 1)
    async with service.stream("/events") as reader:
        service.gate.set()
        seqs: list[int] = []
        async with asyncio.timeout(TIMEOUT_S):
            async for frame in reader:
                if frame.id:
                    seqs.append(int(frame.id.rpartition("-")[2]))
                if frame.event == "job.succeeded":
                    break

    assert frame.data["subject"] == job_id
    assert seqs == sorted(set(seqs))


async def test_progress_is_paced_and_its_last_value_comes(serve: Serve) -> None:
    """Many reports become at most so many a second on a stream; the last one comes before the final event."""
    service = await serve(progress_per_s=10)
    job_id = await service.held()
    async with service.stream(f"/jobs/{job_id}/events") as reader:
        await reader.next("job.progress")
        last = (await service.log())[-1]
        began = time.monotonic()
        for value in range(200):
            service.bg.bus.publish([last._replace(seq=0, type="job.progress", data=f'{{"current":{value}}}')])
            await asyncio.sleep(0.002)
        took_s = time.monotonic() - began
        service.gate.set()
        frames = await reader.rest()

    told = [frame.data["data"]["current"] for frame in frames if frame.event == "job.progress"]
    assert told == sorted(told[:-1]) + told[-1:]
    assert 2 <= len(told) <= took_s * 10 + 4
    assert (told[-1], frames[-1].event) == (2, "job.succeeded")


async def test_a_quiet_job_tells_its_latest_progress_soon(serve: Serve) -> None:
    """A value that had to wait for its turn comes by itself when the turn is there."""
    service = await serve(progress_per_s=10)
    async with service.stream("/events?type=job.progress") as reader:
        await reader.next()
        event = Event(0, "job.progress", 1, "j", "t", "j", "anonymous", 1, '{"current":70}')
        service.bg.bus.publish([event])
        assert (await reader.next()).data["data"]["current"] == 70
        service.bg.bus.publish([event._replace(data='{"current":71}')])
        service.bg.bus.publish([event._replace(data='{"current":72}')])
        began = time.monotonic()

        assert (await reader.next()).data["data"]["current"] == 72
        assert time.monotonic() - began < 0.5


async def test_a_stream_is_compressed_for_who_takes_it(serve: Serve) -> None:
    """With gzip every frame is readable as soon as it is sent, and the stream ends as gzip ends."""
    service = await serve()
    job_id = await service.held()
    async with service.stream(f"/jobs/{job_id}/events", encoding="gzip, deflate") as reader:
        assert reader.response.headers["Content-Encoding"] == "gzip"
        await reader.next("job.started")
        service.gate.set()
        assert (await reader.rest())[-1].event == "job.succeeded"
    async with service.stream(f"/jobs/{job_id}/events", encoding="gzip;q=0, identity") as reader:
        assert "Content-Encoding" not in reader.response.headers


async def test_too_many_streams_are_refused_for_now(serve: Serve) -> None:
    """Over the cap the answer is 503 with Retry-After; a place that gets free is taken."""
    service = await serve(max_subscribers=2)
    async with service.stream("/events") as one, service.stream("/events") as other:
        await one.next()
        await other.next()
        async with service.session.get(service.base + "/events") as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert response.content_type == "application/problem+json"
        other.response.close()
        await until(lambda: service.bg._streams.statistics().open == 1)
        async with service.stream("/events") as third:
            await third.next()


async def test_a_client_that_leaves_is_noticed(serve: Serve) -> None:
    """Its stream ends and leaves no subscription, though nothing was sent meanwhile."""
    service = await serve()
    async with service.stream("/events") as reader:
        await reader.next()
        assert service.bg.bus.statistics().subscribers == 1
        reader.response.close()
        await until(lambda: not service.bg._streams.statistics().open)

    assert service.bg.bus.statistics().subscribers == 0


async def test_a_slow_stream_loses_nothing_stored(serve: Serve) -> None:
    """A stream that overflows its buffer goes on from the log: no gap, no repeat, no reorder."""
    service = await serve(buffer=5)
    async with service.stream("/events") as reader:
        await reader.next()
        for _ in range(3):
            await service.final("announce", count=700)
        log = await service.log()
        frames = [await reader.next() for _ in log]

    assert [frame.id for frame in frames] == [service.cursor(event.seq) for event in log]
    assert service.bg.bus.statistics().lagged > 0


async def test_reconnecting_under_load_sees_every_event_once(serve: Serve) -> None:
    """Clients that hang up again and again while jobs run get the whole log, in its order."""
    service = await serve(buffer=20)
    running = True

    async def read() -> list[str]:
        ids: list[str] = []
        cursor = service.cursor(0)
        while running or ids[-1] != service.cursor((await service.log())[-1].seq):
            async with service.stream("/events", cursor=cursor) as reader:
                for _ in range(37):
                    try:
                        async with asyncio.timeout(0.2):
                            frame = await reader.next()
                    except TimeoutError:
                        break
                    if frame.event and frame.id:
                        ids.append(frame.id)
                        cursor = frame.id
        return ids

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(read()) for _ in range(3)]
        await asyncio.gather(*(service.final() for _ in range(150)))
        running = False

    expected = [service.cursor(event.seq) for event in await service.log()]
    assert [reader.result() == expected for reader in readers] == [True] * 3


async def test_a_retried_job_goes_on_after_its_first_end(serve: Serve) -> None:
    """The cursor of the first final event is answered with what came after the retry."""
    service = await serve()
    job_id = await service.final()
    first_end = (await service.log())[-1]
    await service.bg.retry(job_id)
    await service.bg.wait(job_id, TIMEOUT_S)

    async with service.stream(f"/jobs/{job_id}/events", cursor=service.cursor(first_end.seq)) as reader:
        after = [frame.event for frame in await reader.rest()]
    async with service.stream(f"/jobs/{job_id}/events") as reader:
        whole = [frame.event for frame in await reader.rest()]

    assert after == ["job.queued", "job.started", "job.succeeded"]
    assert whole == ["job.queued", "job.started", "job.succeeded", *after]


async def test_draining_says_goodbye_on_every_stream(serve: Serve) -> None:
    """Each gets stream.bye with a retry time of its own and a clean end, within a second; so does a late one."""
    service = await serve(retry_ms=1000)
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(service.stream("/events")) for _ in range(20)]
        for reader in readers:
            await reader.next()
        began = time.monotonic()
        service.bg._streams.drain()
        ends = [await reader.rest() for reader in readers]
        assert time.monotonic() - began < 1
        late = await (await stack.enter_async_context(service.stream("/events"))).rest()

    retries = {end[0].retry for end in ends}
    assert {end[0].event for end in [*ends, late]} == {"stream.bye"}
    assert len(retries) > 5
    assert all(1000 <= int(retry) <= 2000 for retry in retries)


async def test_an_old_stream_is_told_to_come_back(serve: Serve) -> None:
    """After its time a stream ends cleanly with stream.bye; the client goes on from its cursor and misses nothing."""
    service = await serve(max_age_s=0.2)
    job_id = await service.held()
    async with service.stream(f"/jobs/{job_id}/events") as reader:
        frames = await reader.rest()
    stored = [frame for frame in frames if frame.id]
    service.gate.set()
    await service.bg.wait(job_id, TIMEOUT_S)
    async with service.stream(f"/jobs/{job_id}/events", cursor=stored[-1].id) as reader:
        after = await reader.rest()

    assert [frame.event for frame in stored] == ["job.queued", "job.started"]
    assert (frames[-1].event, frames[-1].data["reason"]) == ("stream.bye", "age")
    assert after[-1].event == "job.succeeded"
    assert not {frame.id for frame in stored} & {frame.id for frame in after if frame.id}


async def test_a_client_that_takes_nothing_is_closed(tmp_path: Path) -> None:
    """A send that nobody takes ends the stream after its time, and frees its place."""
    settings = Settings(database_url=f"sqlite:///{tmp_path}/asyncbg.db")
    never = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never.wait()

    async def receive() -> Any:
        await never.wait()

    async with AsyncBG(settings) as bg:
        streams = Streams(bg, send_timeout_s=0.05)
        query = StreamQuery(wanted=EventFilter(), owner="anonymous", job_id=None, after_seq=0, log_seq=0)
        await streams.respond(query)({"type": "http", "method": "GET"}, receive, send)

        assert (streams.statistics().open, streams.statistics().stalled) == (0, 1)


async def test_a_ticket_opens_one_stream_once(serve: Serve) -> None:
    """A ticket is bound to its path and is good for one use; the path may be named with or without the prefix."""
    service = await serve()
    job_id = await service.final()
    for path in (f"/jobs/{job_id}/events", f"/bg/jobs/{job_id}/events?follow=false"):
        async with service.session.post(service.base + "/stream-tickets", json={"path": path}) as response:
            assert response.status == 201
            answer = await response.json()
        host = service.base.removesuffix("/bg")
        async with service.session.get(f"{service.base}/events?ticket={answer['ticket']}") as response:
            assert response.status == 401
        async with service.session.get(host + answer["url"]) as response:
            assert response.status == 200
            await response.read()
        async with service.session.get(host + answer["url"]) as response:
            assert response.status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/jobs", "http://elsewhere/events", "//elsewhere/events", "events", "/eventsx", "//[x/events", "/jobs/x/events",
        "/bg/bg/events", "/events#/events", "/bg", "/of/ada.canary7f3a@canary7f3a.example/events",
        "/jobs/ada.canary7f3a@canary7f3a.example/events", "/jobs/ada.canary7f3a%40canary7f3a.example/events",
    ],
)  # fmt: skip
async def test_a_ticket_is_for_streams_only(serve: Serve, path: str) -> None:
    """Any other path is refused, and not repeated."""
    service = await serve()
    async with service.session.post(service.base + "/stream-tickets", json={"path": path}) as response:
        assert response.status == 422
        assert "canary7f3a" not in await response.text()


async def test_a_ticket_repeats_nothing_of_the_query(serve: Serve) -> None:
    """The ticket is for the path; filters go behind it, and may hold somebody's name."""
    service = await serve()
    query = "?task=ada.canary7f3a@canary7f3a.example&type=job.failed"
    for path in ("/events", "/bg/events", "/bg/%65vents"):
        async with service.session.post(service.base + "/stream-tickets", json={"path": path + query}) as response:
            assert "canary7f3a" not in await response.text() + str(response.headers)
            answer = await response.json()
        assert (answer["path"], answer["url"]) == ("/bg/events", f"/bg/events?ticket={answer['ticket']}")
        url = service.base.removesuffix("/bg") + answer["url"]
        async with service.session.get(url + "&type=job.failed&follow=false") as response:
            assert response.status == 200


async def test_head_answers_without_streaming(serve: Serve) -> None:
    """A HEAD request gets the headers and no stream is opened."""
    service = await serve()
    async with service.session.head(service.base + "/events") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
    assert service.bg._streams.statistics().opened == 0


async def test_the_streams_are_documented(serve: Serve) -> None:
    """OpenAPI describes one frame of the stream, and that 204 ends it."""
    service = await serve()
    async with service.session.get(service.base.removesuffix("/bg") + "/openapi.json") as response:
        paths = (await response.json())["paths"]

    answers = paths["/bg/jobs/{job_id}/events"]["get"]["responses"]
    assert "event" in answers["200"]["content"]["text/event-stream"]["itemSchema"]["properties"]
    assert "204" in answers
    assert paths["/bg/events"]["get"]["responses"]["200"]["content"].keys() == {"text/event-stream"}
