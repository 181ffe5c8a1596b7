"""The only door to SQLite: one group-committing writer, separate readers, versioned migrations.

While one commit is on its way to the disk, everything that is submitted gathers; the next commit takes it all in a
single transaction, with one hop into the database's thread and as few statements as there are kinds of work.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, Self, TypeAlias, TypeVar, cast
from urllib.parse import quote

import aiosqlite

from asyncbg.core.error_log import ErrorLog, capture
from asyncbg.errors import DatabaseError, NotRunningError, OutageError, SettingsError
from asyncbg.store.sqlite.wal_limit import CHECKPOINT_PAGES, WalLimit

T = TypeVar("T")
logger = logging.getLogger("asyncbg")
MEMORY = ":memory:"
_URL = "sqlite:///"
OLDEST_SQLITE = (3, 38, 0)
"""The first version with ``->>``."""

_BUSY_TIMEOUT_MS = 5_000
_THREAD_END_S = 1.0
_THREAD_LOOK_S = 0.2
_CANCELLED_PAUSE_S = 0.05
_CHECKED_BYTES = 64 * 1024 * 1024
"""A file up to this size is read through at the start: damage is told before anything is accepted."""
_LEAST_BYTES = 256 * 1024
_WRITER_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA wal_autocheckpoint = 0",  # wal_limit.py says when a commit is followed by a checkpoint
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -16000",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}",
)
_READER_PRAGMAS = ("PRAGMA query_only = ON", "PRAGMA temp_store = MEMORY", f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
_VERSIONS = "CREATE TABLE IF NOT EXISTS schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"


def sqlite_path(url: str) -> str:
    """The file of a ``sqlite:///`` URL. Raises SettingsError for another kind of database."""
    if not url.startswith(_URL):
        raise SettingsError(
            "ASYNCBG_DATABASE_URL: only sqlite:/// is supported by this version; PostgreSQL comes later"
        )
    return url.removeprefix(_URL)


class Transaction:
    """One write transaction, as a lane sees it: the connection, and notes for after the commit."""

    __slots__ = ("connection", "memo", "notes")

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Wrap an open transaction."""
        self.connection = connection
        self.notes: list[Any] = []
        self.memo: dict[str, Any] = {}


Guard = Callable[[sqlite3.Connection], None]
"""Called first in a transaction: raises where nothing may be written."""


def unguarded(connection: sqlite3.Connection) -> None:
    """Let every transaction through."""


class Lane(Protocol):
    """Work of one kind: writes all its pending items at once and returns one result for each.

    A result that is an exception is raised at the caller; an exception that escapes rolls everything back.

    It runs in the database's thread, may run again after a rollback, and so must change nothing but the database.
    """

    def __call__(self, tx: Transaction, items: list[Any], /) -> Sequence[Any]:
        """Write ``items``; the results are handed out after the commit."""
        ...


_Batch: TypeAlias = dict[Lane, tuple[list[Any], list[asyncio.Future[Any]]]]
"""What is written together: for each lane its items, and for each item the future of who waits for it."""

_REMEDIES = (
    ("SQLITE_FULL", "the disk is full; free some space"),
    ("SQLITE_BUSY", "another transaction holds the database; end it (or join it: connection=), then retry"),
    ("SQLITE_READONLY", "the database is read-only; check the permissions of the file and its directory"),
    ("SQLITE_CANTOPEN", "the database cannot be opened; check that its directory exists and is writable"),
    ("SQLITE_CORRUPT", "the database is damaged; restore it from a backup"),
    ("SQLITE_NOTADB", "the file is no SQLite database; check ASYNCBG_DATABASE_URL"),
    ("SQLITE_IOERR", "the disk reports an error; check the device"),
)
"""Errors of the database itself, whoever's statement met them, and what to do about each."""


_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_DOUBTFUL = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")
"""After these a connection's own idea of the file is not trusted any more."""


def translate(error: sqlite3.Error) -> DatabaseError:
    """Say what is the matter with the database and what to do about it."""
    code = getattr(error, "sqlite_errorname", "") or type(error).__name__
    remedy = _remedy(error)
    return OutageError(f"{remedy} ({code})") if remedy else DatabaseError(f"{error} ({code})")


def _remedy(error: Exception) -> str | None:
    """What to do about the database; None where the matter is with one statement."""
    code = getattr(error, "sqlite_errorname", "")
    return next((text for prefix, text in _REMEDIES if code.startswith(prefix)), None)


def _is(error: BaseException, kinds: tuple[str, ...]) -> bool:
    return str(getattr(error, "sqlite_errorname", "")).startswith(kinds)


class _Reply:
    """How the database's thread answers: as through a future, but an event loop that was closed does not end it."""

    __slots__ = ("_loop", "future")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def get_loop(self) -> Self:
        return self

    def call_soon_threadsafe(self, settle: Callable[[Any, Any], None], _: Self, value: Any) -> None:
        """Called in the thread."""
        try:
            self._loop.call_soon_threadsafe(settle, self.future, value)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


class _Connection:
    """An aiosqlite connection that runs a whole function in its thread: one hop, whatever the function does."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._aio = connection
        self.pending = 0

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        # aiosqlite's public methods are one hop a statement; this is what they are all made of.
        if not self._aio._running or self._aio._connection is None:
            raise NotRunningError("the database is not open")
        reply = _Reply()
        self._aio._tx.put_nowait((cast(Any, reply), partial(capture, fn, self._aio._connection)))
        self.pending += 1
        try:
            value, error = await reply.future
        finally:
            self.pending -= 1
        if error is None:
            return cast(T, value)
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise error
        raise RuntimeError(f"{type(error).__name__} was raised in the database's thread") from error

    async def close(self) -> None:
        thread = cast(Thread, getattr(self._aio, "_thread", self._aio))  # in aiosqlite 0.21 it is the thread itself
        closing = asyncio.ensure_future(self._aio.close())
        while thread.is_alive() and not closing.done():
            await asyncio.wait([closing], timeout=_THREAD_LOOK_S)
        if not closing.done():  # the thread is on its last lines, or has met an event loop that was closed
            await asyncio.wait([closing], timeout=_THREAD_LOOK_S)
        if closing.done():
            thread.join(_THREAD_END_S)
            closing.result()
        else:
            closing.cancel()
            self._aio._connection = None


class Database:
    """A SQLite file (or ``:memory:``) with one writer and a few readers, each an aiosqlite connection.

    ``after_commit`` is called on the event loop with the notes of each transaction, in the order of the commits and
    before anybody who waits for that commit goes on.
    """

    def __init__(
        self,
        path: str,
        *,
        readers: int = 2,
        checkpoint_pages: int = CHECKPOINT_PAGES,
        errors: ErrorLog | None = None,
    ) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path
        self.after_commit: Callable[[list[Any]], None] = lambda notes: None
        self.commits = 0
        self._errors = errors or ErrorLog()
        self._reader_count = readers
        self._writer_pragmas: Sequence[str] = _WRITER_PRAGMAS
        self._wal_limit = WalLimit(
            None if path == MEMORY else path, busy_timeout_ms=_BUSY_TIMEOUT_MS, pages=checkpoint_pages
        )
        self._writer: _Connection | None = None
        self._readers: list[_Connection] = []
        self._pending: _Batch = {}
        self._batch: _Batch = {}
        self._committing: asyncio.Task[None] | None = None
        self._commit_items = 0
        self._commit_began = 0.0
        self._absolute_path = path
        self._file: tuple[int, int] | None = None
        self._outage_since: float | None = None
        self._damage: OutageError | None = None

    @property
    def waiting(self) -> int:
        """How many items wait for their commit, those of the commit on its way included."""
        return self._commit_items + sum(len(items) for items, _ in self._pending.values())

    @property
    def is_open(self) -> bool:
        """Whether it can be written to."""
        return self._writer is not None

    def has_room(self) -> bool:
        """Whether the disk has space for more than a few pages."""
        if self._file is None:
            return True
        try:
            disk = os.statvfs(os.path.dirname(self._absolute_path))  # noqa: PTH120 - a path is a string here
        except OSError:
            return True  # that it cannot be asked does not make the disk full: the next write says what is the matter
        return disk.f_bavail * disk.f_frsize >= _LEAST_BYTES

    @property
    def stalled_s(self) -> float:
        """How long the commit on its way has taken by now; 0 where none is."""
        return time.monotonic() - self._commit_began if self._commit_items else 0.0

    async def open(self) -> None:
        """Create or open the file and its connections. Raises DatabaseError."""
        self._damage = self._outage_since = None
        self._check_place()
        try:
            await self._check_content()
            self._remember_file()
            self._writer = await self._connect(self._writer_pragmas)
            await self._writer.run(lambda connection: connection.execute(_VERSIONS))
            self._open_wal_limit()
            if self.path == MEMORY:
                self._readers = [self._writer]
            else:
                for _ in range(self._reader_count):
                    self._readers.append(await self._connect(_READER_PRAGMAS))
        except sqlite3.Error as error:
            await self.close()
            raise translate(error) from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Commit what is pending, then close every connection and end its thread.

        What is pending of an event loop that was closed meanwhile is dropped: nobody waits for it.
        """
        committing = self._committing
        if committing is not None and committing.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([committing])
            _fail(self._pending, NotRunningError("the database was closed"))
        self._committing, self._pending, self._batch, self._commit_items = None, {}, {}, 0
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, []
        for connection in dict.fromkeys([*readers, *([writer] if writer else [])]):
            with contextlib.suppress(sqlite3.Error):
                await connection.close()
        self._wal_limit.close()

    async def migrate(self, component: str, scripts: Sequence[str]) -> None:
        """Bring the tables of ``component`` up to date: one script a version, each applied once, in one transaction.

        Raises DatabaseError where the file was written by a newer version.
        """

        def apply(connection: sqlite3.Connection) -> None:
            row = connection.execute("SELECT version FROM schema_version WHERE component = ?", (component,)).fetchone()
            version = row[0] if row else 0
            if version > len(scripts):
                raise DatabaseError(
                    f"{self.path} was written by a newer asyncbg (version {version} of its {component} tables, this "
                    f"one knows {len(scripts)}): upgrade asyncbg, or use another database"
                )
            for script in scripts[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute("INSERT OR REPLACE INTO schema_version VALUES (?, ?)", (component, len(scripts)))

        await self.write(apply)

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` inside the next commit and return its result once that is on disk.

        ``fn`` runs in the database's thread and may run twice (after a rollback that another caller's error caused).
        """
        return cast(T, await self.submit(_each, fn))

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` on the least busy reader. It must be quick: an open read lets the write-ahead log grow."""
        if not self._readers:
            raise NotRunningError("the database is not open")
        reader = min(self._readers, key=lambda connection: connection.pending)
        try:
            return await reader.run(fn)
        except sqlite3.Error as error:
            shown = translate(error)
            if _is(error, _DAMAGE):
                self._meet(shown, is_damage=True)
            raise shown from error

    def submit(self, lane: Lane, item: Any) -> asyncio.Future[Any]:
        """Add ``item`` to the next commit; the future gives the lane's result for it. Never blocks."""
        if self._writer is None:
            raise NotRunningError("the database is not open")
        if self._damage is not None:
            raise OutageError(str(self._damage))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        pending = self._pending.get(lane)
        if pending is None:
            pending = self._pending[lane] = ([], [])
        pending[0].append(item)
        pending[1].append(future)
        if self._committing is None:
            self._begin_commits()
        return future

    def _begin_commits(self) -> None:
        if self._pending and self._committing is None:
            self._committing = asyncio.create_task(self._commit_pending(), name="asyncbg-commit")
            self._committing.add_done_callback(self._commits_ended)

    def _commits_ended(self, task: "asyncio.Task[None]") -> None:
        """Where the task was cancelled or failed, those who wait for its commit are told, and the rest is committed."""
        if self._committing is task:
            self._committing, lost, self._batch = None, self._batch, {}
            self._commit_items = 0
            if not task.cancelled() and (error := task.exception()) is not None:
                self._errors.add("commit", error, "the group commit failed and goes on", is_ours=True)
            _fail(lost, DatabaseError("the commit was interrupted; whether it is on disk is not known"))
            task.get_loop().call_later(_CANCELLED_PAUSE_S, self._begin_commits)

    async def _commit_pending(self) -> None:
        while self._pending:
            await asyncio.sleep(0)  # whoever the last commit woke may have something to add
            self._batch, self._pending = self._pending, {}
            if not self._batch:
                break  # the database was closed meanwhile
            self._commit_items = sum(len(items) for items, _ in self._batch.values())
            self._commit_began = time.monotonic()
            await self._commit(self._batch)
            self._batch, self._commit_items = {}, 0
        self._committing = None

    async def _commit(self, batch: _Batch) -> None:
        work = [(lane, items) for lane, (items, _) in batch.items()]
        writer = cast(_Connection, self._writer)
        try:
            results, notes = await writer.run(lambda connection: self._transact(connection, work))
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            await self._commit_failed(batch, error)
            return
        self.commits += 1
        if self._outage_since is not None:
            self._recover()
        try:
            self.after_commit(notes)
        except BaseException as error:  # noqa: BLE001 - what is on disk is done, whoever fails to take note of it
            self._errors.add("commit", error, "what was committed could not be published", is_ours=True)
        for (_, futures), lane_results in zip(batch.values(), results, strict=True):
            for future, result in zip(futures, lane_results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _transact(
        self, connection: sqlite3.Connection, work: list[tuple[Lane, list[Any]]]
    ) -> tuple[list[Sequence[Any]], list[Any]]:
        """Everything in one transaction; runs in the database's thread."""
        if connection.in_transaction:  # one that could not be rolled back
            connection.execute("ROLLBACK")
        self._wal_limit.begin(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
            tx = Transaction(connection)
            results = [_run_lane(lane, tx, items) for lane, items in work]
            for finish in tx.memo.values():
                finish(tx)
            self._check_file()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the first error tells more; the next one reopens it
                    connection.execute("ROLLBACK")
            raise
        finally:
            self._wal_limit.end()
        return results, tx.notes

    async def _commit_failed(self, batch: _Batch, error: Exception) -> None:
        """One item spoilt the batch: each half of it apart, until only the guilty gets the error."""
        many = sum(len(items) for items, _ in batch.values())
        own = (sqlite3.IntegrityError, sqlite3.DataError)  # a broken constraint, a value too long: not the database
        shown = translate(error) if isinstance(error, sqlite3.Error) and not isinstance(error, own) else error
        if isinstance(shown, OutageError):
            self._meet(shown, is_damage=_is(error, _DAMAGE))
            if _is(error, _DOUBTFUL):
                await self._reopen()
        if many == 1 or isinstance(shown, OutageError):
            _fail(batch, shown)
            return
        for half in _halves(batch, many // 2):
            await self._commit(half)

    def _meet(self, error: DatabaseError, *, is_damage: bool) -> None:
        """Tell an outage once; of a damaged file nothing is taken any more before the next start has checked it."""
        if is_damage:
            self._damage = OutageError(str(error))
        if self._outage_since is None:
            self._outage_since = time.monotonic()
            logger.error("the database cannot be used, nothing is accepted until it can: %s", error)

    def _recover(self) -> None:
        if not self.has_room():
            return  # what fitted was small: the next one may not
        since, self._outage_since = self._outage_since, None
        if since is not None:
            logger.warning("the database can be used again after %.1f s", time.monotonic() - since)

    async def _reopen(self) -> None:
        """Give up a connection whose view of the file is in doubt; where no other can be had, it stays for now."""
        try:
            if self._file is None or _identity(self._absolute_path) != self._file:
                return
        except OutageError:
            return  # whoever waited has the first error, which tells more
        try:
            fresh = await self._connect(self._writer_pragmas)
        except sqlite3.Error:
            return
        stale, self._writer = self._writer, fresh
        if stale is not None:
            with contextlib.suppress(sqlite3.Error):
                await stale.close()

    def _open_wal_limit(self) -> None:
        try:
            self._wal_limit.open()
        except OSError as error:
            raise DatabaseError(f"cannot open {error.filename}: {error.strerror}; check its permissions") from error

    def _remember_file(self) -> None:
        self._absolute_path = os.path.abspath(self.path)  # noqa: PTH100 - symbolic links stay what they are
        self._file = None if self.path == MEMORY else _identity(self._absolute_path)

    def _check_file(self) -> None:
        """What is written into a file that was moved or deleted would be lost with this process."""
        if self._file is not None and _identity(self._absolute_path) != self._file:
            raise OutageError("the database file was moved or deleted while in use; put it back, or restart")

    def _is_quick_to_check(self) -> bool:
        file = Path(self.path)
        return self.path != MEMORY and file.is_file() and 0 < file.stat().st_size <= _CHECKED_BYTES

    async def _check_content(self) -> None:
        """Refuse a damaged file before it is touched. Raises DatabaseError."""
        if not self._is_quick_to_check():
            return
        verdict = "ok"
        try:
            async with aiosqlite.connect(f"file:{quote(self.path)}?mode=ro", uri=True) as connection:
                for (line,) in await connection.execute_fetchall("PRAGMA quick_check(1)"):
                    verdict = str(line)
        except sqlite3.Error as error:
            if _is(error, _DAMAGE):
                raise translate(error) from error
        if verdict != "ok":
            raise OutageError(f"the database is damaged; restore it from a backup ({' '.join(verdict.split())[:200]})")

    def _dial(self) -> aiosqlite.Connection:
        return aiosqlite.connect(self.path, isolation_level=None, cached_statements=256)

    async def _connect(self, pragmas: Sequence[str]) -> _Connection:
        connection = await self._dial()
        wrapped = _Connection(connection)
        try:
            for pragma in pragmas:
                await connection.execute_fetchall(pragma)
        except BaseException:
            await wrapped.close()
            raise
        return wrapped

    def _check_place(self) -> None:
        """Refuse what cannot work, and create the file for its owner's eyes only."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise DatabaseError(f"SQLite {sqlite3.sqlite_version} is too old; asyncbg needs 3.38 or newer")
        if self.path == MEMORY:
            return
        path = Path(self.path)
        if not path.parent.is_dir():
            raise DatabaseError(f"the directory {path.parent} of the database does not exist; create it")
        with contextlib.suppress(OSError):  # what cannot be created is told by the connection, with SQLite's own word
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _run_lane(lane: Lane, tx: Transaction, items: list[Any]) -> Sequence[Any]:
    """A lane's results, one for each item: a lane that breaks that rule must not leave anybody waiting."""
    results = lane(tx, items)
    if len(results) != len(items):
        raise RuntimeError(f"a lane gave {len(results)} results for {len(items)} items")
    return results


async def open_all(*stores: Coroutine[Any, Any, None]) -> None:
    """Open several stores of one database at once; each comes to its end. Raises the first error as it is."""
    for outcome in await asyncio.gather(*stores, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _halves(batch: _Batch, first: int) -> tuple[_Batch, _Batch]:
    """The first so many items of a batch, and the rest, in their lanes and their order."""
    head: _Batch = {}
    tail: _Batch = {}
    for lane, (items, futures) in batch.items():
        cut = min(first, len(items))
        first -= cut
        for half, chosen in ((head, slice(cut)), (tail, slice(cut, None))):
            if items[chosen]:
                half[lane] = (items[chosen], futures[chosen])
    return head, tail


def _fail(batch: _Batch, error: Exception) -> None:
    """Raise ``error`` at all who wait for a batch."""
    for _, futures in batch.values():
        for future in futures:
            if not future.done():
                future.set_exception(error)


def _each(tx: Transaction, items: list[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
    """The lane of ``write``: every function in turn."""
    return [fn(tx.connection) for fn in items]


def _identity(path: str) -> tuple[int, int] | None:
    """Which file a path leads to now; None where there is none. Raises OutageError where that cannot be told."""
    try:
        found = os.stat(path)  # noqa: PTH116 - once a commit: the quickest way
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutageError(f"the database file cannot be looked at: {error.strerror}; check its directory") from error
    return found.st_dev, found.st_ino


def _statements(script: str) -> list[str]:
    """Split a script into statements; ``executescript`` would commit."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
