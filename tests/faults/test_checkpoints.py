"""Several processes on one file: one at a time checkpoints, so that SQLite's WAL-reset bug cannot happen."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from asyncbg.ops.open_store import empty_log
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.file_lock import FileLock
from asyncbg.store.sqlite.wal_limit import MOST_BYTES, WalLimit

PAGES = 10
WRITER = """
import asyncio, sys
from asyncbg.store.sqlite.database import Database
from asyncbg.ops.open_store import empty_log
from pathlib import Path

async def main() -> None:
    database = Database(sys.argv[1], checkpoint_pages=int(sys.argv[3]))
    await database.open()
    await database.migrate("notes", ["CREATE TABLE note (who INTEGER, n INTEGER, text TEXT, PRIMARY KEY (who, n));"])
    for n in range(int(sys.argv[4])):
        row = (int(sys.argv[2]), n, "x" * 3_000)
        await database.write(lambda connection: connection.execute("INSERT INTO note VALUES (?, ?, ?)", row))
        if n % 50 == 7:
            await asyncio.to_thread(empty_log, Path(sys.argv[1]), wait_s=0.0)
    await database.close()

asyncio.run(main())
"""


@asynccontextmanager
async def notes(path: Path) -> AsyncIterator[Database]:
    """A database whose log may have ten pages."""
    database = Database(str(path), checkpoint_pages=PAGES)
    await database.open()
    try:
        await database.migrate("notes", ["CREATE TABLE note (text TEXT);"])
        yield database
    finally:
        await database.close()


async def fill(database: Database, pages: int) -> None:
    """Write so many pages, each in a commit of its own."""
    for _ in range(pages):
        await database.write(lambda connection: connection.execute("INSERT INTO note VALUES (?)", ("x" * 4_000,)))


def pages_of(path: Path) -> int:
    """What is in the database file itself, the log left out."""
    return path.stat().st_size // 4_096


async def test_who_does_not_hold_the_lock_does_not_checkpoint(tmp_path: Path) -> None:
    """Its commits stay in the log while another process is at it, and go on being acknowledged."""
    path, other = tmp_path / "notes.db", FileLock(tmp_path / "notes.db-checkpoint")
    async with notes(path) as database:
        other.open(create=True)
        assert other.try_lock()
        before = pages_of(path)
        await fill(database, 5 * PAGES)
        assert pages_of(path) == before

        other.close()
        await fill(database, 1)

        assert pages_of(path) > before + 4 * PAGES


async def test_the_lock_is_held_for_no_longer_than_a_commit(tmp_path: Path) -> None:
    """An idle process keeps nobody from it."""
    path = tmp_path / "notes.db"
    async with notes(path) as one, notes(path) as two:
        before = pages_of(path)
        await fill(one, 1)
        await fill(two, 2 * PAGES)

        assert pages_of(path) > before + PAGES


async def test_every_connection_comes_with_automatic_checkpoints_off(tmp_path: Path) -> None:
    """They are on for a commit under the lock only."""

    def pages(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA wal_autocheckpoint").fetchone()[0])

    other = FileLock(tmp_path / "notes.db-checkpoint")
    async with notes(tmp_path / "notes.db") as database:
        assert await database.write(pages) == PAGES
        other.open(create=True)
        assert other.try_lock()
        assert await database.write(pages) == 0
        other.close()


def test_an_emptied_log_had_a_page_of_ones_own(tmp_path: Path) -> None:
    """A checkpoint that is asked for follows a commit too: a log with such a page is never started anew by others."""
    path = tmp_path / "notes.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE note (text)"):
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # all of the log is in the database already
        seen: list[str] = []
        connection.set_trace_callback(seen.append)
        limit = WalLimit(str(path), busy_timeout_ms=1_000)
        limit.open()
        assert limit.empty(connection)
        limit.close()

    assert seen.index("COMMIT") == seen.index("PRAGMA wal_checkpoint(TRUNCATE)") - 1


def test_a_log_is_emptied_beside_a_process_that_writes(tmp_path: Path) -> None:
    """Whoever erases need not ask the service for it."""
    path = tmp_path / "notes.db"

    async def erase() -> int:
        async with notes(path) as database:
            await fill(database, 3)
            assert await asyncio.to_thread(empty_log, path)
            size = Path(f"{path}-wal").stat().st_size  # noqa: ASYNC240
            await fill(database, 1)
            return size

    assert asyncio.run(erase()) == 0


async def test_a_process_that_is_at_it_for_a_moment_stops_nobody(tmp_path: Path) -> None:
    """Where the log is as long as it may get, whoever is in the way is waited for before writing is refused."""
    path, other = tmp_path / "notes.db", FileLock(tmp_path / "notes.db-checkpoint")
    async with notes(path) as database:
        other.open(create=True)
        assert other.try_lock()
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("PRAGMA wal_autocheckpoint = 0")
            writer.execute("INSERT INTO note VALUES (?)", ("x" * (MOST_BYTES + 1),))
        asyncio.get_running_loop().call_later(0.3, other.close)

        await fill(database, 1)

        assert Path(f"{path}-wal").stat().st_size < MOST_BYTES  # noqa: ASYNC240


async def test_three_processes_that_write_and_checkpoint_all_the_time_lose_nothing(tmp_path: Path) -> None:
    """Every row that was acknowledged is there, and the file is whole."""
    path, rows = tmp_path / "notes.db", 300
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), str(who), str(PAGES), str(rows))
        for who in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM note").fetchone() == (3 * rows,)
