"""The door to SQLite: what is acknowledged is on disk, writes share commits, nobody pays for another's error."""

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncbg.core.event import Event
from asyncbg.errors import DatabaseError, NotRunningError
from asyncbg.store.sqlite.database import Database, Transaction
from asyncbg.store.sqlite.database_file import MEMORY

TABLE = "CREATE TABLE note (text TEXT NOT NULL UNIQUE)"


class _SpoiltError(Exception):
    """What a bad item raises."""


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind."""
    return MEMORY if request.param == "memory" else str(tmp_path / "notes.db")


@pytest.fixture
async def database(path: str) -> AsyncIterator[Database]:
    """An open database with one table."""
    opened = Database(path)
    await opened.open()
    await opened.migrate("notes", [TABLE + ";"])
    yield opened
    await opened.close()


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Database]:
    """An open database in a file, with one table."""
    opened = Database(str(tmp_path / "notes.db"))
    await opened.open()
    await opened.migrate("notes", [TABLE + ";"])
    yield opened
    await opened.close()


def add(connection: sqlite3.Connection, *texts: str) -> None:
    """Write notes."""
    connection.executemany("INSERT INTO note VALUES (?)", [(text,) for text in texts])


def notes_of(connection: sqlite3.Connection) -> list[str]:
    """The notes there are, in the order they were written."""
    return [row[0] for row in connection.execute("SELECT text FROM note ORDER BY rowid")]


def mode_of(path: str) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(Path(path).stat().st_mode)


def lane(tx: Transaction, items: list[str]) -> Sequence[str | Exception]:
    """A lane that writes all its items at once and notes them for after the commit."""
    add(tx.connection, *items)
    tx.events.extend(Event(0, item, 0, "", "", "", "", 0) for item in items)
    return [item.upper() if item != "refused" else _SpoiltError(item) for item in items]


async def test_a_write_returns_what_its_function_returned(database: Database) -> None:
    """The value comes back and a read sees the row."""
    changed = await database.write(lambda connection: connection.execute("INSERT INTO note VALUES ('a')").rowcount)

    assert changed == 1
    assert await database.read(notes_of) == ["a"]


async def test_an_acknowledged_write_is_seen_by_another_process(file: Database) -> None:
    """When ``write`` returns, the transaction has committed."""
    await file.write(lambda connection: add(connection, "a"))

    with closing(sqlite3.connect(file.path)) as other:
        assert notes_of(other) == ["a"]


async def test_the_file_survives_a_power_cut(file: Database) -> None:
    """Write-ahead log, synced at every commit, deleted rows overwritten."""

    def pragmas(connection: sqlite3.Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "secure_delete")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await file.write(pragmas) == ["wal", 2, 1]


async def test_the_file_is_for_its_owner_only(file: Database) -> None:
    """Nobody else on the machine reads what jobs are about."""
    assert mode_of(file.path) == 0o600


async def test_writes_made_together_share_a_commit(database: Database) -> None:
    """Two hundred callers wait for a handful of commits, not for two hundred."""
    before = database.commits

    await asyncio.gather(*(database.write(lambda c, n=n: add(c, f"n{n}")) for n in range(200)))  # type: ignore[misc]

    assert database.commits - before <= 3
    assert await database.read(notes_of) == [f"n{n}" for n in range(200)]


async def test_an_error_reaches_only_the_caller_it_belongs_to(database: Database) -> None:
    """A function that raises is rolled back alone; the neighbours of its commit are on disk."""

    def spoilt(connection: sqlite3.Connection) -> None:
        add(connection, "half-done")
        raise _SpoiltError

    results = await asyncio.gather(
        database.write(lambda c: add(c, "a")),
        database.write(spoilt),
        database.write(lambda c: add(c, "b")),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [type(None), _SpoiltError, type(None)]
    assert await database.read(notes_of) == ["a", "b"]


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("INSERT INTO note VALUES ('a')", id="a constraint"),
        pytest.param("INSERT INTO no_such_table VALUES (1)", id="an unknown table"),
        pytest.param("no SQL at all", id="a syntax error"),
        pytest.param("INSERT INTO note VALUES (?)", id="a missing value"),
    ],
)
async def test_a_bad_statement_harms_nobody_else(database: Database, statement: str) -> None:
    """What SQLite refuses of one caller is not told to the others, and theirs is written."""
    results = await asyncio.gather(
        database.write(lambda c: add(c, "a")),
        database.write(lambda c: c.execute(statement)),
        database.write(lambda c: add(c, "b")),
        return_exceptions=True,
    )

    assert results[0] is None
    assert isinstance(results[1], sqlite3.Error | DatabaseError)
    assert results[2] is None
    assert await database.read(notes_of) == ["a", "b"]


async def test_a_full_disk_is_told_to_everybody_and_passes(file: Database) -> None:
    """No caller is told that its write is safe; when there is room again, writes go on."""

    def grow(connection: sqlite3.Connection, marker: str) -> None:
        add(connection, *(f"{marker}{n}" + "x" * 4000 for n in range(50)))

    await file.write(lambda c: c.execute("PRAGMA max_page_count = 10").fetchone())
    full = await asyncio.gather(*(file.write(lambda c: grow(c, "a")) for _ in range(3)), return_exceptions=True)
    await file.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
    await file.write(lambda c: grow(c, "b"))

    assert all(isinstance(error, DatabaseError) and "disk is full" in str(error) for error in full)
    assert len(await file.read(notes_of)) == 50


async def test_a_lane_writes_all_its_items_at_once(database: Database) -> None:
    """Each caller gets the result of its own item."""
    results = await asyncio.gather(*(database.submit(lane, f"n{n}") for n in range(5)))

    assert results == ["N0", "N1", "N2", "N3", "N4"]


async def test_a_lane_refuses_one_item_by_returning_an_error(database: Database) -> None:
    """The error is raised at that item's caller; the commit stands."""
    results = await asyncio.gather(
        *(database.submit(lane, item) for item in ("a", "refused", "b")), return_exceptions=True
    )

    assert [type(result) for result in results] == [str, _SpoiltError, str]


async def test_a_spoilt_lane_is_tried_item_by_item(database: Database) -> None:
    """An item that breaks a constraint is found, the others of its lane are written, and their notes told once."""
    told: list[str] = []
    database.after_commit = lambda events: told.extend(event.type for event in events)

    results = await asyncio.gather(
        *(database.submit(lane, item) for item in ("a", "b", "b", "c")), return_exceptions=True
    )

    assert [type(result) for result in results] == [str, str, sqlite3.IntegrityError, str]
    assert told == ["a", "b", "c"]
    assert await database.read(notes_of) == ["a", "b", "c"]


async def test_notes_are_told_in_commit_order_before_any_caller_goes_on(database: Database) -> None:
    """Whoever waits for a commit finds its notes told already."""
    told: list[str] = []
    database.after_commit = lambda events: told.extend(event.type for event in events)
    seen: list[bool] = []

    async def write(text: str) -> None:
        await database.submit(lane, text)
        seen.append(text in told)
        await database.submit(lane, text + "!")
        seen.append(text + "!" in told)

    await asyncio.gather(*(write(f"n{n}") for n in range(20)))

    assert seen == [True] * 40
    assert told == await database.read(notes_of)


async def test_a_caller_that_gives_up_does_not_undo_its_write(database: Database) -> None:
    """What was handed over is written; neither it nor its neighbours are disturbed."""
    given_up = asyncio.create_task(database.write(lambda c: add(c, "a")))
    neighbour = asyncio.create_task(database.write(lambda c: add(c, "b")))
    await asyncio.sleep(0)  # both have handed over
    given_up.cancel()
    await neighbour

    assert given_up.cancelled() or given_up.cancelling()
    assert await database.read(notes_of) == ["a", "b"]


async def test_a_reader_cannot_write(file: Database) -> None:
    """``read`` runs on a connection that only reads."""
    with pytest.raises(DatabaseError):
        await file.read(lambda c: add(c, "a"))

    assert await file.read(notes_of) == []


async def test_closing_commits_what_is_pending(tmp_path: Path) -> None:
    """Writes that were handed over before ``close`` are on disk after it."""
    database = Database(str(tmp_path / "notes.db"))
    await database.open()
    await database.migrate("notes", [TABLE + ";"])
    pending = [database.submit(lane, f"n{n}") for n in range(10)]

    await database.close()

    assert [future.result() for future in pending] == [f"N{n}" for n in range(10)]
    with closing(sqlite3.connect(database.path)) as other:
        assert len(notes_of(other)) == 10


async def test_closing_ends_every_thread(path: str) -> None:
    """A connection has a thread of its own; none is left, also after closing twice."""
    before = set(threading.enumerate())
    database = Database(path)
    await database.open()
    opened = set(threading.enumerate()) - before

    await database.close()
    await database.close()

    for thread in opened:
        thread.join(5)
    assert opened
    assert not any(thread.is_alive() for thread in opened)


async def test_a_closed_database_takes_nothing(path: str) -> None:
    """Reads and writes before the start and after the end are told so."""
    database = Database(path)
    for _ in range(2):
        with pytest.raises(NotRunningError, match="not open"):
            await database.write(notes_of)
        with pytest.raises(NotRunningError, match="not open"):
            await database.read(notes_of)
        await database.open()
        await database.close()


async def test_each_script_is_applied_once(tmp_path: Path) -> None:
    """A later version applies only what is new; the components do not know of each other."""
    database = Database(str(tmp_path / "notes.db"))
    first, second = TABLE + ";", "ALTER TABLE note ADD COLUMN at INTEGER;\nCREATE INDEX note_at ON note (at);"
    await database.open()
    await database.migrate("notes", [first])
    await database.close()
    await database.open()
    await database.migrate("notes", [first, second])
    await database.migrate("notes", [first, second])
    await database.migrate("others", ["CREATE TABLE other (n INTEGER);"])

    versions = await database.read(lambda c: c.execute("SELECT * FROM schema_version ORDER BY component").fetchall())
    columns = await database.read(lambda c: [row[1] for row in c.execute("PRAGMA table_info(note)")])
    await database.close()

    assert versions == [("notes", 2), ("others", 1)]
    assert columns == ["text", "at"]


async def test_a_script_that_fails_leaves_nothing(database: Database) -> None:
    """Half a migration is none."""
    with pytest.raises(DatabaseError):
        await database.migrate("broken", ["CREATE TABLE half (n INTEGER);\nCREATE TABLE half (n INTEGER);"])

    tables = await database.read(lambda c: [row[0] for row in c.execute("SELECT name FROM sqlite_master")])
    assert "half" not in tables


async def test_a_newer_schema_is_refused(database: Database) -> None:
    """A file that a newer version wrote is left alone, and the error says what to do."""
    with pytest.raises(DatabaseError, match=r"version 1 of its notes tables.*upgrade"):
        await database.migrate("notes", [])


async def test_a_trigger_in_a_script_is_one_statement(database: Database) -> None:
    """Semicolons inside a trigger do not split it."""
    script = """
        CREATE TABLE log (n INTEGER); -- a comment; with a semicolon
        CREATE TRIGGER log_note AFTER INSERT ON note BEGIN
            INSERT INTO log VALUES (1);
            INSERT INTO log VALUES (2);
        END;
    """
    await database.migrate("log", [script])
    await database.write(lambda c: add(c, "a"))

    assert await database.read(lambda c: c.execute("SELECT count(*) FROM log").fetchone()) == (2,)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """The error says which directory to create."""
    with pytest.raises(DatabaseError, match=r"nowhere.*create it"):
        await Database(str(tmp_path / "nowhere" / "notes.db")).open()


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """The error names the setting, the content stays as it was, and no thread is left."""
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada, " * 500)
    before = set(threading.enumerate())

    with pytest.raises(DatabaseError, match="no SQLite database; check ASYNCBG_DATABASE_URL"):
        await Database(str(path)).open()

    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before
    assert path.read_text() == "Dear Ada, " * 500


async def test_another_writer_is_waited_for(file: Database) -> None:
    """While another process holds the file the write waits; it goes through when the other is done."""
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        add(other, "theirs")
        ours = asyncio.create_task(file.write(lambda c: add(c, "ours")))
        assert await file.read(notes_of) == []
        other.execute("COMMIT")
        await ours

    assert await file.read(notes_of) == ["theirs", "ours"]


# One item of a commit


class _Rude(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), StopIteration(), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), RecursionError(), _Rude()],
    ids=repr,
)
async def test_an_item_that_raises_anything_fails_alone(database: Database, error: BaseException) -> None:
    """The others of the same commit, in its lane and in others, are on disk; so is the next commit."""

    def spoil(_: sqlite3.Connection) -> None:
        raise error

    def insert(connection: sqlite3.Connection) -> int:
        return connection.execute("INSERT INTO kept VALUES (1)").rowcount

    await database.write(lambda connection: connection.execute("CREATE TABLE kept (n)"))
    async with asyncio.timeout(10):
        found = await asyncio.gather(
            *(database.write(insert) for _ in range(5)), database.write(spoil),
            *(database.write(insert) for _ in range(5)), return_exceptions=True,
        )  # fmt: skip
        await database.write(insert)

    assert [type(one) for one in found if not isinstance(one, int)] == [
        type(error) if isinstance(error, Exception) and not isinstance(error, StopIteration) else RuntimeError
    ]
    assert await database.read(lambda connection: connection.execute("SELECT count(*) FROM kept").fetchone()) == (11,)


async def test_a_bad_item_costs_few_commits(database: Database) -> None:
    """The batch is halved until the guilty one is alone, not committed one by one."""

    def spoil(_: sqlite3.Connection) -> None:
        raise ValueError

    before = database.commits
    found = await asyncio.gather(
        *(database.write(lambda _: 1) for _ in range(500)), database.write(spoil),
        *(database.write(lambda _: 1) for _ in range(500)), return_exceptions=True,
    )  # fmt: skip

    assert (found.count(1), database.commits - before <= 20) == (1000, True)


async def test_a_follower_that_raises_costs_no_commit(database: Database) -> None:
    """What is on disk is told to who waited for it, whoever fails to take note of it."""

    def breaks(_: list[Event]) -> None:
        raise SystemExit

    database.after_commit = breaks
    async with asyncio.timeout(10):
        assert [await database.write(lambda _: "done") for _ in range(2)] == ["done", "done"]


async def test_a_lane_that_forgets_a_result_leaves_nobody_waiting(database: Database) -> None:
    """Every item gets an answer, an error if there is no other."""

    def forgets(tx: Transaction, items: list[int]) -> list[int]:
        return []

    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await database.submit(forgets, 1)


async def test_a_commit_that_somebody_cancels_leaves_nobody_waiting(database: Database) -> None:
    """Who waits for it is told that its outcome is not known; what comes after is committed."""
    began, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(_: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(began.set)
        go_on.wait(10)

    waiting = asyncio.ensure_future(database.write(slow))
    await began.wait()
    later = asyncio.ensure_future(database.write(lambda _: "later"))
    await asyncio.sleep(0)
    next(task for task in asyncio.all_tasks() if task.get_name() == "asyncbg-commit").cancel()

    async with asyncio.timeout(10):
        with pytest.raises(DatabaseError, match="interrupted"):
            await waiting
        go_on.set()
        assert await later == "later"
