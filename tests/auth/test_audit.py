"""The audit log holds who did what, takes no change, and cannot be flooded."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncbg.auth.api_key import Scope
from asyncbg.auth.audit import KEPT_DAYS, REFUSALS_PER_MINUTE, Audit, AuditOutcome
from asyncbg.core.clock import ManualClock, SystemClock
from asyncbg.store.sqlite.database import Database
from tests.auth.conftest import House


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database file of its own."""
    database = Database(str(tmp_path / "test.db"))
    await database.open()
    yield database
    await database.close()


async def opened(database: Database, clock: ManualClock | None = None) -> Audit:
    """An open audit log."""
    audit = Audit(database, clock=clock or ManualClock(SystemClock().now_ms()))
    await audit.open()
    return audit


async def test_what_is_done_is_written_down(house: House) -> None:
    """Cancels and retries with what came of them, refusals with who and where, never with what was sent."""
    ada, reader = await house.enter("ada"), await house.enter("reader", Scope.READ)
    later = {"task": "cleanup_task", "args": {"name": "x-canary7f3a"}, "delay_s": 3600}
    job = (await ada.post("/jobs", json=later)).json()["jobs"][0]["id"]
    for _ in range(2):
        await ada.post(f"/jobs/{job}/cancel")
    await ada.post(f"/jobs/{job}/retry")
    await reader.post("/send-notification/ada.canary7f3a@canary7f3a.example")
    await ada.get("/Ada%20canary7f3a", headers={"Authorization": "Bearer hunter2-canary7f3a"})

    cancels = [(one.who, one.which, one.outcome, one.reason) for one in await house.entries("job.cancel", 2)]
    assert cancels == [("ada", job, "done", ""), ("ada", job, "failed", "JobStateError")]
    assert [one.outcome for one in await house.entries("job.retry")] == ["done"]
    refused = [(one.who, one.which, one.reason) for one in await house.entries("request", 2)]
    assert ("reader", "POST /send-notification", "missing-scope") in refused
    assert ("?", "GET /?", "unauthenticated") in refused
    assert "example" not in str(refused)
    assert "Canary7f3a" not in str(refused)


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET who = 'x'", "DELETE FROM audit", "REPLACE INTO audit SELECT * FROM audit"]
)
async def test_the_schema_takes_no_change(database: Database, statement: str) -> None:
    """Whoever opens the file."""
    audit = await opened(database)
    await audit.record("key.create", "ada", who="command line")

    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        await database.write(lambda connection: connection.execute(statement))
    assert [one.who for one in (await audit.read()).items] == ["command line"]


async def test_rows_that_are_old_enough_are_let_go(database: Database) -> None:
    """At the next start, and not a day before; a clock that is wrong lets go of nothing young."""
    now_ms = SystemClock().now_ms()
    for days in (KEPT_DAYS - 1, KEPT_DAYS + 1):
        audit = await opened(database, ManualClock(now_ms - days * 86_400_000))
        await audit.record("key.create", str(days), who="command line")
    ahead = await opened(database, ManualClock(now_ms + 10_000 * 86_400_000))

    assert [one.which for one in (await ahead.read()).items] == [str(KEPT_DAYS - 1)]


async def test_a_flood_of_refusals_is_counted(database: Database) -> None:
    """A minute's first sixty are written, the others as one number when the next begins."""
    clock = ManualClock(SystemClock().now_ms() // 60_000 * 60_000)
    audit = await opened(database, clock)
    for number in range(500):
        audit.refuse("request", str(number), who="?", reason="unauthenticated")
    clock.advance(minutes=1)
    audit.refuse("request", "next", who="?", reason="unauthenticated")
    await audit.record("key.create", "ada", who="command line")  # behind all the others

    rows = (await audit.read(limit=500)).items[::-1]
    assert [one.which for one in rows[:2]] == ["0", "1"]
    assert len(rows) == REFUSALS_PER_MINUTE + 3
    assert [(one.what, one.reason) for one in rows[-3:-1]] == [
        ("refusals", f"{500 - REFUSALS_PER_MINUTE} more in that minute"),
        ("request", "unauthenticated"),
    ]


async def test_an_owner_that_is_an_address_is_a_pseudonym(database: Database) -> None:
    """A host application may name owners as it likes; what cannot be erased holds nothing personal."""
    audit = await opened(database)
    await audit.record("job.cancel", "x", who="ada.canary7f3a@canary7f3a.example", outcome=AuditOutcome.DONE)

    [row] = (await audit.read()).items
    assert row.who.startswith("[email:")


async def test_the_log_is_read_in_pages(database: Database) -> None:
    """Newest first, by what and by whom."""
    audit = await opened(database)
    for name in ("a", "b", "c"):
        await audit.record("key.create", name, who="command line")
    await audit.record("key.revoke", "b", who="command line")

    first = await audit.read(what="key.create", limit=2)
    second = await audit.read(what="key.create", limit=2, cursor=first.next)
    assert [one.which for one in first.items + second.items] == ["c", "b", "a"]
    assert (await audit.read(who="nobody")).items == []
