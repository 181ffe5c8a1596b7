"""Periodic tasks: when a slot is due, and that it makes one job, whoever looks and whatever the clock does."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from datetime import timezone as fixed_zone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asyncbg.core.clock import ManualClock
from asyncbg.core.job import JobRecord, JobState
from asyncbg.engine import Engine, Task
from asyncbg.engine.schedule import Cron, ScheduleError
from asyncbg.errors import ArgumentsError, AsyncBGError
from asyncbg.settings import Settings
from asyncbg.store.base import JobQuery

START = datetime(2027, 1, 15, 8, 1, tzinfo=UTC)
MakeEngine = Callable[..., Engine]


def ms(moment: datetime) -> int:
    """Milliseconds since the epoch."""
    return int(moment.timestamp()) * 1000


@pytest.fixture
def clock() -> ManualClock:
    """Friday, a minute after eight."""
    return ManualClock(ms(START))


@pytest.fixture
def make_engine(tmp_path: Path, clock: ManualClock) -> MakeEngine:
    """Make engines on one database file, all with the same clock; each runs ``report`` when the expression says."""

    def make(expression: str | None = None) -> Engine:
        engine = Engine(Settings(database_url=f"sqlite:///{tmp_path / 'jobs.db'}"), clock=clock)
        if expression is not None:
            engine.schedule(expression)(report)
        return engine

    return make


async def report() -> str:
    """A task."""
    return "done"


def plain_report() -> str:
    """A task that is a plain function."""
    return "done in a thread"


async def jobs_of(engine: Engine) -> list[JobRecord]:
    """All jobs, after every due slot was looked at; oldest first."""
    await engine._parts.schedules.tick()
    return list(reversed(await engine.backend.list(JobQuery(limit=200))))


async def slots_of(engine: Engine) -> list[str]:
    """The slots that jobs were made for, as times of day, after every due slot was looked at."""
    await engine._parts.schedules.tick()
    query = "SELECT idempotency_key FROM job WHERE owner = 'schedule' ORDER BY n"
    keys = await engine._parts.database.read(lambda connection: connection.execute(query).fetchall())
    return [datetime.fromtimestamp(int(key.rpartition("/")[2]) / 1000, UTC).strftime("%H:%M") for (key,) in keys]


# Firing


async def test_a_slot_makes_a_job_that_runs(make_engine: MakeEngine, clock: ManualClock) -> None:
    """The job carries the tag and the owner ``schedule`` and runs like any other; nobody has to ask for it."""
    engine = make_engine("*/5 * * * *")
    ended: asyncio.Queue[str] = asyncio.Queue()
    engine.on("job.succeeded")(lambda event: ended.put_nowait(event.job_id))
    async with engine:
        clock.advance(minutes=4)

        async with asyncio.timeout(10):
            record = await engine.get(await ended.get())

        assert (record.task, record.owner, list(record.tags)) == ("report", "schedule", ["schedule"])
        assert record.result == '"done"'
        assert await engine.backend.find_by_key("schedule", f"schedule/report/{ms(START) + 240_000}") == record


async def test_every_slot_fires_once(make_engine: MakeEngine, clock: ManualClock) -> None:
    """Looking often makes no more jobs than there are slots."""
    engine = make_engine("*/5 * * * *")
    async with engine:
        for _ in range(30):
            clock.advance(minutes=1)
            slots = await slots_of(engine)

        assert slots == ["08:05", "08:10", "08:15", "08:20", "08:25", "08:30"]


async def test_a_new_schedule_does_not_fire_for_the_past(make_engine: MakeEngine, clock: ManualClock) -> None:
    """What lay before the first start is not caught up, nor what lay before a schedule was added."""
    engine = make_engine("0 * * * *")
    clock.advance(hours=5)
    async with engine:
        assert await jobs_of(engine) == []
        clock.advance(minutes=30)
        engine.schedule("*/10 * * * *")(plain_report)

        assert await jobs_of(engine) == []


async def test_a_schedule_added_while_running_fires(make_engine: MakeEngine, clock: ManualClock) -> None:
    """It begins when it is added."""
    async with make_engine() as engine:
        engine.schedule("*/10 * * * *")(report)
        clock.advance(minutes=10)

        assert await slots_of(engine) == ["08:10"]


async def test_missed_slots_are_caught_up_once(make_engine: MakeEngine, clock: ManualClock) -> None:
    """After a downtime the latest missed slot makes one job, not each of them one; then it goes on as before."""
    first, second = make_engine("*/5 * * * *"), make_engine("*/5 * * * *")
    async with first:
        clock.advance(minutes=4)
        assert await slots_of(first) == ["08:05"]
    clock.advance(hours=3)

    async with second:
        assert await slots_of(second) == ["08:05", "11:05"]
        clock.advance(minutes=5)
        assert await slots_of(second) == ["08:05", "11:05", "11:10"]


async def test_a_downtime_without_a_slot_catches_nothing_up(make_engine: MakeEngine, clock: ManualClock) -> None:
    """A restart alone makes no job."""
    first, second = make_engine("0 12 * * *"), make_engine("0 12 * * *")
    async with first:
        clock.advance(minutes=1)
    clock.advance(hours=2)

    async with second:
        assert await jobs_of(second) == []


async def test_an_engine_started_again_goes_on(make_engine: MakeEngine, clock: ManualClock) -> None:
    """Stopping and starting the same engine loses no slot and repeats none."""
    engine = make_engine("*/5 * * * *")
    for _ in range(3):
        async with engine:
            clock.advance(minutes=5)
            slots = await slots_of(engine)

    assert slots == ["08:05", "08:10", "08:15"]


async def test_a_slot_is_not_forgotten_with_its_job(make_engine: MakeEngine, clock: ManualClock) -> None:
    """When the job of a slot was purged, the slot stays fired."""
    first, second = make_engine("0 9 * * *"), make_engine("0 9 * * *")
    async with first:
        clock.advance(hours=1)
        [job] = await jobs_of(first)
        await first.wait(job.id, 10)
        assert await first.backend.purge(before_ms=clock.now_ms() + 1, limit=10) == 1

    async with second:
        assert await jobs_of(second) == []


async def test_two_engines_on_one_file_make_one_job_a_slot(make_engine: MakeEngine, clock: ManualClock) -> None:
    """However many processes look, and at the same moment."""
    first, second = make_engine("*/5 * * * *"), make_engine("*/5 * * * *")
    async with first, second:
        for _ in range(4):
            clock.advance(minutes=5)
            await asyncio.gather(*(engine._parts.schedules.tick() for engine in (first, second, second, first)))

        assert await slots_of(first) == ["08:05", "08:10", "08:15", "08:20"]


async def test_a_clock_that_goes_back_fires_nothing_twice(make_engine: MakeEngine, clock: ManualClock) -> None:
    """Neither in the process that saw it, nor in one that starts then; the slots after it fire."""
    first, second = make_engine("*/5 * * * *"), make_engine("*/5 * * * *")
    async with first:
        clock.advance(minutes=9)
        assert await slots_of(first) == ["08:10"]
        clock.advance(minutes=-9)
        clock.advance(minutes=5)
        assert await slots_of(first) == ["08:10"]
        async with second:
            assert await slots_of(second) == ["08:10"]
            clock.advance(minutes=10)
            assert await slots_of(second) == ["08:10", "08:15"]


async def test_a_clock_that_was_years_ahead_does_not_silence_a_schedule(
    make_engine: MakeEngine, clock: ManualClock
) -> None:
    """Once the clock is right again, the slots of now fire, though one of a far day was."""
    engine = make_engine("0 * * * *")
    async with engine:
        clock.advance(days=4000)
        assert len(await jobs_of(engine)) == 1
        clock.advance(days=-4000)
        assert len(await jobs_of(engine)) == 1
        clock.advance(hours=1)

        assert (await slots_of(engine))[-1] == "09:00"


async def test_runs_do_not_overlap_where_the_task_has_a_key(make_engine: MakeEngine, clock: ManualClock) -> None:
    """While a job of the key is open, the next slot makes none."""
    engine = make_engine()
    begun, may_end = asyncio.Event(), asyncio.Event()

    @engine.schedule("*/5 * * * * *")
    @engine.task(key="one at a time")
    async def slow() -> None:
        begun.set()
        await may_end.wait()

    async with engine:
        clock.advance(seconds=5)
        [job] = await jobs_of(engine)
        async with asyncio.timeout(10):
            await begun.wait()
        clock.advance(seconds=5)
        assert [one.id for one in await jobs_of(engine)] == [job.id]
        may_end.set()
        await engine.wait(job.id, 10)
        clock.advance(seconds=5)

        assert [one.id for one in await jobs_of(engine)][:-1] == [job.id]


async def test_a_full_backlog_delays_a_slot_and_does_not_lose_it(tmp_path: Path, clock: ManualClock) -> None:
    """The slot fires as soon as there is room."""
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'jobs.db'}",
        runner={"max_queued": 1},
    )
    async with Engine(settings, clock=clock) as engine:
        later = await engine.task(report).options(delay=3600).enqueue()
        engine.schedule("*/5 * * * *")(plain_report)
        clock.advance(minutes=4)
        with pytest.raises(AsyncBGError, match="are waiting already"):
            await engine._parts.schedules.tick()
        await later.cancel()

        assert await slots_of(engine) == ["08:05"]


# Registering


def decorated(engine: Engine, how: str) -> Task[[], Any]:
    """The same task, decorated in each way there is."""
    every = engine.schedule("*/5 * * * *")
    match how:
        case "coroutine":
            return every(report)
        case "plain":
            return every(plain_report)
        case "task":
            return every(engine.task(retries=2, priority=7)(report))
        case "above":
            return engine.task(retries=2, priority=7)(every(report))
        case _:
            return engine.task(name="renamed", retries=2, priority=7)(every(report))


@pytest.mark.parametrize("how", ["coroutine", "plain", "task", "above", "renamed"])
async def test_functions_and_tasks_can_be_scheduled(make_engine: MakeEngine, clock: ManualClock, how: str) -> None:
    """A coroutine function, a plain one and a task; above ``@bg.task`` and below it. What comes back is a task."""
    engine = make_engine()
    task = decorated(engine, how)
    async with engine:
        clock.advance(minutes=5)
        [job] = await jobs_of(engine)
        record = await engine.wait(job.id, 10)

        assert (record.state, record.task, record.priority) == (
            JobState.SUCCEEDED,
            task.name,
            7 if how in {"task", "above", "renamed"} else 0,
        )
        assert await task() == ("done in a thread" if how == "plain" else "done")


async def test_a_task_may_have_several_schedules(make_engine: MakeEngine, clock: ManualClock) -> None:
    """Each fires; a slot that two of them share, or a schedule given twice, makes one job."""
    engine = make_engine()
    task = engine.schedule("*/10 * * * *")(engine.schedule("*/15 * * * *")(report))
    engine.schedule("*/10  * * * * ")(task)
    async with engine:
        for _ in range(30):
            clock.advance(minutes=1)
            slots = await slots_of(engine)

        assert slots == ["08:10", "08:15", "08:20", "08:30"]


def test_a_task_that_needs_arguments_cannot_be_scheduled(make_engine: MakeEngine) -> None:
    """Nobody is there to give them; defaults are fine."""
    engine = make_engine()

    async def greet(name: str) -> None: ...

    async def greet_all(name: str = "all") -> None: ...

    with pytest.raises(ArgumentsError, match=r"'greet': name: "):
        engine.schedule("* * * * *")(greet)
    assert engine.schedule("* * * * *")(greet_all).name == "greet_all"


@pytest.mark.parametrize("expression", ["", "every day", "* * * *", "61 * * * *", "0 0 31 2 *", "* * * * * * *"])
def test_a_bad_expression_is_named_at_once(make_engine: MakeEngine, expression: str) -> None:
    """The error names the expression and says what one looks like; it is a ValueError too."""
    with pytest.raises(ScheduleError) as caught:
        make_engine().schedule(expression)

    assert isinstance(caught.value, ValueError)
    assert repr(expression) in str(caught.value)
    assert "five fields" in str(caught.value)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "/etc/passwd", "Europe", 3])
def test_a_bad_time_zone_is_named_at_once(make_engine: MakeEngine, zone: Any) -> None:
    """The error names the zone."""
    with pytest.raises(ScheduleError) as caught:
        make_engine().schedule("* * * * *", timezone=zone)

    assert repr(zone) in str(caught.value)


# Time zones


def local_slots(cron: Cron, after: datetime, many: int) -> list[str]:
    """The next slots, as the clocks of the zone and of UTC show them."""
    found, at_ms = [], ms(after)
    for _ in range(many):
        slot = cron.after(at_ms)
        assert slot is not None
        at_ms = slot
        moment = datetime.fromtimestamp(slot / 1000, cron.zone)
        found.append(f"{moment:%d %H:%M} = {moment.astimezone(UTC):%d %H:%M}")
    return found


@pytest.mark.parametrize("zone", ["America/New_York", ZoneInfo("America/New_York"), fixed_zone(timedelta(hours=-5))])
async def test_slots_are_those_of_the_time_zone(make_engine: MakeEngine, clock: ManualClock, zone: Any) -> None:
    """Nine in New York is two in the afternoon in UTC, in winter; the zone is a name or a tzinfo."""
    engine = make_engine()
    engine.schedule("0 9 * * *", timezone=zone)(report)
    async with engine:
        clock.advance(hours=24)

        assert await slots_of(engine) == ["14:00"]


def test_a_slot_in_the_hour_that_is_skipped_comes_right_after_it() -> None:
    """Where the clocks go from two to three, half past two is at three; every half hour goes on."""
    night = datetime(2026, 3, 27, 12, tzinfo=UTC)
    daily, often = Cron.parse("30 2 * * *", "Europe/Berlin"), Cron.parse("*/30 * * * *", "Europe/Berlin")

    assert local_slots(daily, night, 3) == ["28 02:30 = 28 01:30", "29 03:00 = 29 01:00", "30 02:30 = 30 00:30"]
    assert local_slots(often, datetime(2026, 3, 29, 0, 1, tzinfo=UTC), 3) == [
        "29 01:30 = 29 00:30",
        "29 03:00 = 29 01:00",
        "29 03:30 = 29 01:30",
    ]


def test_a_slot_in_the_hour_that_comes_twice_fires_once() -> None:
    """Where the clocks go back, a daily slot is in the first of both hours; every half hour goes on in both."""
    night = datetime(2026, 10, 24, 12, tzinfo=UTC)
    daily, often = Cron.parse("30 2 * * *", "Europe/Berlin"), Cron.parse("*/30 * * * *", "Europe/Berlin")

    assert local_slots(daily, night, 2) == ["25 02:30 = 25 00:30", "26 02:30 = 26 01:30"]
    assert local_slots(often, datetime(2026, 10, 25, 0, 1, tzinfo=UTC), 3) == [
        "25 02:30 = 25 00:30",
        "25 02:00 = 25 01:00",
        "25 02:30 = 25 01:30",
    ]


@pytest.mark.parametrize("expression", ["30 2 * * *", "*/20 * * * *", "15 */2 * * *", "0 1-4 * * SUN", "*/20 2 * * *"])
@pytest.mark.parametrize("change", [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)])
def test_the_latest_slot_is_the_last_of_those_that_came(expression: str, change: datetime) -> None:
    """Looking back finds the slot that looking forward reached, at every moment of a night the clocks change in."""
    cron = Cron.parse(expression, "Europe/Berlin")
    came, slot = [], cron.after(ms(change - timedelta(days=9)))
    while slot is not None and slot < ms(change + timedelta(hours=6)):
        came.append(slot)
        slot = cron.after(slot)

    for minutes in range(0, 300, 7):
        now_ms = ms(change + timedelta(minutes=minutes)) + 123
        assert cron.latest(now_ms) == max(slot for slot in came if slot <= now_ms)


def test_six_fields_have_the_seconds_first() -> None:
    """As cronsim reads them."""
    assert Cron.parse("*/10 * * * * *", "UTC").after(12_345) == 20_000
