"""The heartbeat keeps the leases of a busy process, and no other's; clocks that jump change nothing."""

import asyncio
import sys
from pathlib import Path

from asyncbg import AsyncBG, JobState
from asyncbg.core.clock import ManualClock
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import Done, NewJob
from asyncbg.engine.runner import Heartbeat
from asyncbg.store.base import Settlement
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.process_slot import ProcessSlot

LEASE_S = 0.4
BUSY = """
import asyncio, sys, time
from asyncbg import AsyncBG

bg = AsyncBG(database_url=sys.argv[1], runner={"lease_s": float(sys.argv[2]), "shutdown_grace_s": 5})

@bg.task(name="block")
async def block() -> str:
    print("blocked", flush=True)
    time.sleep(4 * float(sys.argv[2]))  # the whole event loop stands still
    return "done"

async def main():
    async with bg:
        job = await block.enqueue()
        print(job.id, flush=True)
        await job.result(timeout=30)

asyncio.run(main())
"""


async def test_a_process_whose_loop_is_blocked_keeps_its_leases(tmp_path: Path) -> None:
    """A task that blocks its event loop for longer than the lease is run once: the thread goes on beating."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUSY, url, str(LEASE_S), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    job_id = (await process.stdout.readline()).decode().strip()
    neighbour = AsyncBG(database_url=url, runner={"lease_s": LEASE_S})

    @neighbour.task(name="block")
    async def never() -> str:
        return "run twice"

    if job_id == "blocked":
        job_id = (await process.stdout.readline()).decode().strip()
    async with neighbour:
        record = await neighbour.wait(job_id, 30)

    assert await process.wait() == 0
    assert (record.state, record.attempt, record.crashes, record.result) == (JobState.SUCCEEDED, 1, 0, '"done"')


def new_job(clock: ManualClock) -> NewJob:
    """A queued job of the task ``noop``."""
    job_id, now_ms = IdGenerator(clock).new(), clock.now_ms()
    return NewJob(job_id, "noop", "default", "me", job_id, "[]", "queued", 0, 1, 0, 0, 0, "{}", "{}", now_ms, now_ms)


async def test_a_wall_clock_that_jumps_rescues_nothing(tmp_path: Path) -> None:
    """Leases are measured in monotonic time: a clock set an hour ahead, or back, lets none lapse and none live on."""
    clock = ManualClock()
    store = SQLiteBackend(Database(str(tmp_path / "jobs.db")), clock=clock)
    await store.open()
    try:
        await store.enqueue([new_job(clock)])
        (lease,) = (await store.claim(1, lease_s=30)).leases

        clock.set_wall(hours=1)
        assert await store.rescue() == 0
        clock.set_wall(hours=-2)
        assert await store.rescue() == 0
        clock.advance(seconds=31)
        assert await store.rescue() == 1
        assert await store.settle([Settlement(lease, Done("null"))]) == [False]
    finally:
        await store.close()


async def test_a_wall_clock_that_jumps_strands_no_retry_and_no_delay(tmp_path: Path) -> None:
    """A delay is a span of time and moves along, once whatever number of processes see it; a time of day stays."""
    clock = ManualClock()
    stores = [SQLiteBackend(Database(str(tmp_path / "jobs.db")), clock=clock) for _ in range(2)]
    for store in stores:
        await store.open()
    store = stores[0]
    try:
        due_ms = clock.now_ms() + 60_000
        delayed = new_job(clock)._replace(state="scheduled", run_at_ms=due_ms)
        at_noon = new_job(clock)._replace(state="scheduled", run_at_ms=due_ms, absolute=1)
        for job in (delayed, at_noon):
            await store.enqueue([job])

        clock.set_wall(hours=-1)
        jumps = [await each.follow_clock() for each in stores]
        again = [await each.follow_clock() for each in stores]

        assert (jumps, again) == ([-3_600_000, 0], [0, 0])
        found = [await store.get(job.id) for job in (delayed, at_noon)]
        assert [record.run_at_ms for record in found if record] == [due_ms - 3_600_000, due_ms]
    finally:
        for each in stores:
            await each.close()


def test_a_place_counts_as_alive_as_long_as_its_heartbeat_says(tmp_path: Path) -> None:
    """Its neighbours see the deadline it wrote; one of another life of the machine's clock does not count."""
    mine, theirs = ProcessSlot(tmp_path / "jobs.db"), ProcessSlot(tmp_path / "jobs.db")
    mine.acquire()
    theirs.acquire()
    try:
        theirs.beat(0, lease_ms=5_000)

        assert mine.silent([theirs.name], 4_999) == []
        assert mine.silent([theirs.name], 5_001) == [theirs.name]
        theirs.beat(400_000_000_000, lease_ms=5_000)
        assert mine.silent([theirs.name], 5_001) == [theirs.name]
    finally:
        mine.release()
        theirs.release()


def test_who_stood_still_himself_takes_nobody_for_silent(tmp_path: Path) -> None:
    """A paused machine stops all at once: for a lease after it goes on, nobody judges the silence of others."""
    mine, theirs = ProcessSlot(tmp_path / "jobs.db"), ProcessSlot(tmp_path / "jobs.db")
    mine.acquire()
    theirs.acquire()
    both = [mine.name, theirs.name]
    try:
        theirs.beat(0, lease_ms=4_000)
        for now_ms in (0, 1_000, 2_000, 3_000):
            mine.beat(now_ms, lease_ms=4_000)
        assert mine.silent(both, 5_000) == [theirs.name]  # while we were awake

        assert mine.silent(both, 60_000) == []  # before our own thread has beaten again
        mine.beat(60_000, lease_ms=4_000)
        assert mine.silent(both, 60_001) == []  # and after it
        for now_ms in (61_000, 62_000, 63_000, 64_000):
            mine.beat(now_ms, lease_ms=4_000)
        assert mine.silent(both, 64_001) == [theirs.name]  # they had the time to be heard of
    finally:
        mine.release()
        theirs.release()


async def test_a_machine_that_stood_still_rescues_nothing(tmp_path: Path) -> None:
    """Neither a neighbour's jobs nor one's own are taken for lost where no process could beat."""
    clock = ManualClock()
    stores = [SQLiteBackend(Database(str(tmp_path / "jobs.db")), clock=clock) for _ in range(2)]
    for store in stores:
        await store.open()
    try:
        for store in stores:
            store.beat(lease_s=30)
            await store.enqueue([new_job(clock)])
            await store.claim(1, lease_s=30)

        clock.advance(minutes=10)

        assert [await store.rescue() for store in stores] == [0, 0]
    finally:
        for store in stores:
            await store.close()


def test_a_heartbeat_stops_at_once_and_leaves_no_thread() -> None:
    """``stop`` does not wait for the period to be over."""
    beats: list[int] = []
    heartbeat = Heartbeat(lambda: beats.append(1), period_s=3600)
    heartbeat.start()

    heartbeat.stop()

    assert beats == [1]
