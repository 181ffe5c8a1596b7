"""The client and the real service, over a real server: also while it restarts and while the network cuts."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from asyncbg.client import Client, RemoteEvent
from asyncbg.core.event import EventFilter
from asyncbg.core.job import JobState
from asyncbg.errors import (
    ArgumentsError,
    IdempotencyError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobStateError,
    UnknownTaskError,
)
from asyncbg.fastapi import AsyncBG
from tests.client.conftest import TIMEOUT_S, Service
from tests.client.peer import listening

MISSING = "019ab3f0-5a1e-7000-8000-3f1c0de5a7b2"


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Client]:
    """A client of the service, with the real time."""
    async with asyncio.timeout(TIMEOUT_S * 2), Client(service.url) as client:
        yield client


async def log_of(bg: AsyncBG) -> list[str]:
    """The ids of all stored events."""
    events, _ = await bg.backend.events(after_seq=0, wanted=EventFilter(), limit=100_000)
    return [f"{bg.backend.epoch}-{event.seq}" for event in events]


async def test_a_job_is_submitted_followed_and_its_result_fetched(client: Client) -> None:
    """From the first call to the last."""
    accepted = await client.submit("add", {"a": 3, "b": 4}, priority=2, tags=["sums"])
    events = [event async for event in client.watch(accepted.id)]
    job = await client.wait(accepted.id)

    assert [event.type for event in events] == ["job.queued", "job.started", "job.succeeded"]
    assert (job.state, job.result, job.priority, job.tags) == (JobState.SUCCEEDED, 7, 2, ("sums",))
    assert job == await client.get(accepted.id)
    assert job.finished_at is not None
    assert job.created_at <= job.finished_at
    assert await client.result(accepted.id) == 7


async def test_a_job_that_runs_shows_its_progress_and_can_be_cancelled(client: Client) -> None:
    """And be told why, on its event."""
    accepted, is_cancelled = await client.submit("hold"), False
    async with contextlib.aclosing(client.watch(accepted.id)) as events:
        async for event in events:
            if event.type == "job.progress" and not is_cancelled:  # the last one may come again before the end
                is_cancelled = True
                assert event.data["message"] == "half"
                progress = (await client.get(accepted.id)).progress
                assert progress is not None
                assert (progress.current, progress.total) == (1, 2)
                await client.cancel(accepted.id, reason="enough")
    assert (event.type, event.data) == ("job.cancelled", {"reason": "enough"})

    with pytest.raises(JobCancelledError):
        await client.result(accepted.id)


async def test_a_failed_job_is_run_again(client: Client) -> None:
    """Its stream then has both stories."""
    accepted = await client.submit("fail")
    with pytest.raises(JobFailedError, match="no use"):
        await client.result(accepted.id)
    again = await client.retry(accepted.id)
    await client.wait(accepted.id)

    assert again.id == accepted.id
    story = ["job.queued", "job.started", "job.failed"]
    assert [event.type async for event in client.watch(accepted.id)] == story * 2


async def test_a_seen_end_is_an_end(client: Client) -> None:
    """Whoever comes back with the id of the final event is told that there is nothing more."""
    accepted = await client.submit("add", {"a": 1})
    last = [event async for event in client.watch(accepted.id)][-1]

    assert [event async for event in client.watch(accepted.id, last_event_id=last.id)] == []


async def test_a_useless_cursor_is_told_as_a_reset(client: Client) -> None:
    """With the job as it stands; then there is nothing more."""
    accepted = await client.submit("add", {"a": 1})
    await client.wait(accepted.id)

    (event,) = [event async for event in client.watch(accepted.id, last_event_id="another-3")]

    assert (event.is_reset, event.data["reason"]) == (True, "foreign")
    assert event.data["jobs"][0]["state"] == "succeeded"


async def test_mistakes_are_named(client: Client) -> None:
    """Each as the error the engine has for it."""
    done = await client.submit("add", {"a": 1}, idempotency_key="once")
    await client.wait(done.id)

    with pytest.raises(UnknownTaskError, match="known: add, announce, fail, hold"):
        await client.submit("subtract")
    with pytest.raises(ArgumentsError, match="a: "):
        await client.submit("add", {"a": "many"})
    with pytest.raises(IdempotencyError, match="use a new key") as reused:
        await client.submit("add", {"a": 2}, idempotency_key="once")
    assert reused.value.key == "once"
    with pytest.raises(JobStateError, match=f"cannot cancel job {done.id}: it is succeeded"):
        await client.cancel(done.id)
    for call in (client.get, client.cancel, client.retry, client.wait):
        with pytest.raises(JobNotFoundError, match=MISSING):
            await call(MISSING)
    with pytest.raises(JobNotFoundError, match=MISSING):
        await anext(client.watch(MISSING))


async def test_jobs_are_found_by_what_they_are(client: Client) -> None:
    """By state, task, tag and batch; newest first, over as many pages as there are."""
    ids = [(await client.submit("add", {"a": n}, tags=["odd"] if n % 2 else [])).id for n in range(5)]
    for job_id in ids:
        await client.wait(job_id)
    later = await client.submit("add", {"a": 9}, delay_s=600)

    assert [job.id async for job in client.list(state="succeeded", task="add")] == ids[::-1]
    assert [job.id async for job in client.list(tag="odd")] == [ids[3], ids[1]]
    assert [job.id async for job in client.list(limit=2)] == [later.id, ids[4]]
    assert [job.id async for job in client.list(batch=ids[0], owner="anonymous")] == [ids[0]]
    page = await client.page(limit=4)
    assert page.next is not None
    assert [job.id for job in (await client.page(limit=4, cursor=page.next)).items] == ids[1::-1]


async def test_the_stream_of_all_is_filtered(client: Client) -> None:
    """Only what was asked for comes, of every job."""
    ready = await client.submit("announce", {"count": 0})
    first = await anext(client.watch(ready.id))
    await client.submit("announce", {"count": 3})

    async with contextlib.aclosing(client.events(type="thing.*", last_event_id=first.id)) as events:
        numbers = [(await anext(events)).data["n"] for _ in range(3)]

    assert numbers == [0, 1, 2]


async def test_a_restart_of_the_service_is_not_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Streams and waits go on over restarts: every stored event comes once, in order; the job's result arrives."""
    service = Service(tmp_path_factory.mktemp("restart"), 0, {"retry_ms": 50, "heartbeat_s": 1})
    seen: list[str | None] = []
    async with contextlib.AsyncExitStack() as stack:
        async with service.running():
            client = await stack.enter_async_context(Client(service.url))
            probe = await client.submit("add", {"a": 0})
            first = await anext(client.watch(probe.id))
            late = await client.submit("add", {"a": 20, "b": 1}, delay_s=1.5)
            following = asyncio.create_task(_follow(client.events(last_event_id=first.id), seen))
            watching = asyncio.create_task(_collect(client.watch(late.id)))
            result = asyncio.create_task(client.result(late.id, timeout=TIMEOUT_S))
            await _until(lambda: len(seen) > 1)
        for _ in range(2):
            async with service.running():
                job = await client.submit("announce", {"count": 20})
                await client.wait(job.id, timeout=TIMEOUT_S)
        async with service.running() as bg, asyncio.timeout(TIMEOUT_S):
            assert await result == 21
            await client.submit("fail")
            await following
            assert [event.type for event in await watching][-2:] == ["job.started", "job.succeeded"]
            assert [first.id, *seen] == await log_of(bg)


async def _follow(events: AsyncIterator[RemoteEvent], seen: list[str | None]) -> None:
    """Note the ids of stored events until a job failed."""
    async for event in events:
        if event.id is not None:
            assert not event.is_reset
            seen.append(event.id)
        if event.type == "job.failed":
            return


async def _collect(events: AsyncIterator[RemoteEvent]) -> list[RemoteEvent]:
    return [event async for event in events]


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task of this process brings about."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - seen from outside, there is no event to await
            await asyncio.sleep(0.005)


# A network that cuts


@asynccontextmanager
async def cutting(service: Service, allowance: Callable[[], int | None]) -> AsyncIterator[str]:
    """A proxy that cuts each connection after so many bytes from the service (None: not at all); its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = allowance()
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", service.port)
        upwards = asyncio.create_task(_pump(reader, up_writer))
        try:
            while chunk := await up_reader.read(4_096):
                writer.write(chunk if left is None else chunk[:left])
                await writer.drain()
                if left is not None and (left := left - len(chunk)) <= 0:
                    break
        finally:
            upwards.cancel()
            up_writer.close()
            await asyncio.wait([upwards])

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}/bg"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(4_096):
            writer.write(chunk)
            await writer.drain()


@pytest.fixture
def patient() -> Callable[[float], Awaitable[None]]:
    """A sleep that is short, since each cut costs one."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))

    return sleep


async def test_a_stream_over_a_network_that_cuts_is_whole(
    service: Service, client: Client, patient: Callable[[float], Awaitable[None]]
) -> None:
    """Cut at any byte, again and again, the job's events come once each and in their order."""
    accepted = await client.submit("announce", {"count": 40})
    await client.wait(accepted.id)
    chance = random.Random(7)

    cuts = 0

    def allowance() -> int:
        nonlocal cuts
        cuts += 1
        return chance.randint(1, 3_000)

    async with cutting(service, allowance) as url, Client(url, sleep=patient) as cut_client:
        ids = [event.id async for event in cut_client.watch(accepted.id)]

    assert service.bg is not None
    assert ids == await log_of(service.bg)
    assert cuts > 5


async def test_a_submission_whose_answer_is_lost_becomes_one_job(
    service: Service, client: Client, patient: Callable[[float], Awaitable[None]]
) -> None:
    """The service took it, the network cut the answer: the next try is told of the same job."""
    allowances = iter([1, 60, None])
    async with cutting(service, lambda: next(allowances)) as url, Client(url, sleep=patient) as cut_client:
        accepted = await cut_client.submit("add", {"a": 1})
    await client.wait(accepted.id)

    assert [job.id async for job in client.list()] == [accepted.id]
    assert service.runs == 1
