"""The activity log: one row a job, pages, and statistics that are right under concurrent actions."""

import asyncio

import pytest

from asyncbg.core.clock import ManualClock
from asyncbg.errors import BadCursorError
from asyncbg.service.integrations.activity import (
    _OWNERS,
    _SCHEMA,
    MAX_ACTIONS,
    MAX_DAYS,
    Activity,
    ActivityItem,
    Statistics,
)
from asyncbg.store.sqlite.database import Database

NOON_MS = 1_800_014_400_000  # 2027-01-15T12:00:00Z
DAY_MS = 86_400_000


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands at noon."""
    return ManualClock(NOON_MS)


@pytest.fixture
async def activity(database: Database, clock: ManualClock) -> Activity:
    """An open activity log."""
    activity = Activity(database, clock=clock)
    await activity.open()
    return activity


async def test_a_job_that_runs_again_adds_no_second_row(activity: Activity) -> None:
    """The row is tied to the job: the second record of a job says False and changes nothing."""
    assert await activity.record(user_id=1, action="login", job_id="job-1")
    assert not await activity.record(user_id=1, action="login", job_id="job-1")

    assert (await activity.statistics(1)).total == 1


async def test_the_log_is_paged_from_the_newest_on(activity: Activity, clock: ManualClock) -> None:
    """Pages follow each other without gap or repeat, even when rows come in between."""
    for number in range(5):
        await activity.record(user_id=1, action=f"action {number}", job_id=f"job-{number}")
        clock.advance(seconds=1)
    await activity.record(user_id=2, action="other", job_id="job-other")

    first = await activity.log(1, limit=2)
    await activity.record(user_id=1, action="later", job_id="job-later")
    second = await activity.log(1, limit=2, cursor=first.next)
    third = await activity.log(1, limit=2, cursor=second.next)

    assert [item.action for page in (first, second, third) for item in page.items] == [
        "action 4", "action 3", "action 2", "action 1", "action 0",
    ]  # fmt: skip
    assert third.next is None
    assert third.items == [ActivityItem(id=1, user_id=1, action="action 0", at_ms=NOON_MS)]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "²", "9" * 40, "1; DROP TABLE activity"])
async def test_a_foreign_cursor_is_an_error_that_says_so(activity: Activity, cursor: str) -> None:
    """A cursor that we did not make is refused in words."""
    with pytest.raises(BadCursorError, match="not one of ours"):
        await activity.log(1, cursor=cursor)


async def test_statistics_are_computed_from_the_log(activity: Activity, clock: ManualClock) -> None:
    """Total, per action, first and last seen, and per UTC day."""
    for number, action in enumerate(["login", "buy", "login"]):
        await activity.record(user_id=1, action=action, job_id=f"job-{number}")
        clock.advance(hours=11)

    assert await activity.statistics(1) == Statistics(
        total=3,
        by_action={"buy": 1, "login": 2},
        first_seen_ms=NOON_MS,
        last_seen_ms=NOON_MS + 22 * 3_600_000,
        by_day={"2027-01-15": 2, "2027-01-16": 1},
    )


async def test_a_user_who_did_nothing_has_empty_statistics(activity: Activity) -> None:
    """An unknown user has zero of everything and was never seen."""
    assert await activity.statistics(7) == Statistics(0, {}, None, None, {})
    assert (await activity.log(7)).items == []


async def test_concurrent_actions_are_all_counted(activity: Activity, database: Database) -> None:
    """A hundred actions at once, each followed by its refresh, end in a hundred, in the log and in the stored row."""

    async def act(number: int) -> None:
        await activity.record(user_id=1, action=f"a{number % 3}", job_id=f"job-{number}")
        await activity.refresh_statistics(1)

    await asyncio.gather(*(act(number) for number in range(100)))

    assert (await activity.statistics(1)).by_action == {"a0": 34, "a1": 33, "a2": 33}
    stored = await database.read(lambda connection: connection.execute("SELECT * FROM user_statistics").fetchall())
    assert stored == [
        ("anonymous", 1, 100, '{"a0": 34, "a1": 33, "a2": 33}', NOON_MS, NOON_MS, '{"2027-01-15": 100}', NOON_MS),
    ]


async def test_statistics_show_the_most_frequent_actions_and_count_the_rest(
    activity: Activity, database: Database, clock: ManualClock
) -> None:
    """However many kinds of action and days there are, both tables stay small and add up to the total."""
    await database.write(lambda connection: connection.executemany(
        "INSERT INTO activity (job_id, owner, user_id, action, at_ms) VALUES (?, 'ada', 1, ?, ?)",
        [(f"job-{n}-{m}", f"action {n:03}", NOON_MS + n * DAY_MS) for n in range(400) for m in range(1 + (n >= 390))],
    ).rowcount)  # fmt: skip

    for owner in ("ada", None):
        shown = await activity.statistics(1, owner=owner)
        assert (shown.total, len(shown.by_action), shown.by_action_rest) == (410, MAX_ACTIONS, 300)
        assert list(shown.by_action)[:10] == [f"action {n}" for n in range(390, 400)]
        assert (len(shown.by_day), shown.by_day_rest) == (MAX_DAYS, 34)
        assert list(shown.by_day) == sorted(shown.by_day)


async def test_the_actions_of_all_owners_are_added_up(activity: Activity) -> None:
    """A caller that sees every owner gets one number for an action, whoever submitted it."""
    for number, owner in enumerate(["ada", "bob", "bob"]):
        await activity.record(user_id=1, action="login", job_id=f"job-{number}", owner=owner)

    assert (await activity.statistics(1, owner="bob")).by_action == {"login": 2}
    assert (await activity.statistics(1)).by_action == {"login": 3}


async def test_the_counts_follow_every_change_of_the_log(activity: Activity, database: Database) -> None:
    """A row that is renamed or removed is counted as what it is now."""
    for number in range(4):
        await activity.record(user_id=1, action="login", job_id=f"job-{number}")
    await database.write(lambda c: c.execute("UPDATE activity SET action = 'x' WHERE job_id = 'job-1'").rowcount)
    await database.write(lambda c: c.execute("DELETE FROM activity WHERE job_id = 'job-2'").rowcount)

    shown = await activity.statistics(1)
    assert (shown.total, shown.by_action, list(shown.by_day.values())) == (3, {"login": 2, "x": 1}, [3])


async def test_an_older_log_is_counted_once(database: Database, clock: ManualClock) -> None:
    """A database of before the counts shows the same statistics after the upgrade."""
    await database.migrate("activity", [_SCHEMA, _OWNERS])
    statement = "INSERT INTO activity (job_id, user_id, action, at_ms) VALUES (?, 1, 'login', ?)"
    rows = [(f"job-{number}", NOON_MS) for number in range(3)]
    await database.write(lambda connection: connection.executemany(statement, rows).rowcount)
    activity = Activity(database, clock=clock)

    await activity.open()

    assert (await activity.statistics(1)).by_day == {"2027-01-15": 3}


async def test_opening_again_keeps_the_log(activity: Activity, database: Database, clock: ManualClock) -> None:
    """The tables are created once; a restart finds what was recorded."""
    await activity.record(user_id=1, action="login", job_id="job-1")

    again = Activity(database, clock=clock)
    await again.open()

    assert (await again.statistics(1)).total == 1
