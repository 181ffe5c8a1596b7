"""The only access to SQLite: one group-committing writer, separate readers, versioned migrations.

While one commit is on its way to the disk, new work is collected; the next commit writes it all in a single
transaction, with one hop into the database's thread and as few statements as there are kinds of work.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import aiosqlite

from asyncbg.core.error_log import ErrorLog
from asyncbg.core.event import Event
from asyncbg.errors import DatabaseError, NotRunningError, OutageError
from asyncbg.store.sqlite.connection import Connection
from asyncbg.store.sqlite.database_file import DAMAGE, STALE, DatabaseFile, is_error_of, translate
from asyncbg.store.sqlite.wal_limit import CHECKPOINT_PAGES, WalLimit

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

logger = logging.getLogger("asyncbg")

_BUSY_TIMEOUT_MS = 5_000
_CANCELLED_PAUSE_S = 0.05
_WRITER_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA wal_autocheckpoint = 0",  # wal_limit.py decides when a commit is followed by a checkpoint
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -16000",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}",
)
_READER_PRAGMAS = ("PRAGMA query_only = ON", "PRAGMA temp_store = MEMORY", f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
_VERSIONS = "CREATE TABLE IF NOT EXISTS schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"


class Transaction:
    """One write transaction, as a lane sees it: the connection, the events to publish, and what runs at its end."""

    __slots__ = ("connection", "events", "finishers")

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Wrap an open transaction."""
        self.connection = connection
        self.events: list[Event] = []
        """Events to publish after the commit."""
        self.finishers: dict[str, Callable[[Transaction], None]] = {}
        """State that is shared by the lanes and written once, right before the commit."""


Guard = Callable[[sqlite3.Connection], None]
"""Called first in a transaction: raises where nothing may be written."""


def unguarded(connection: sqlite3.Connection) -> None:
    """Allow every transaction."""


class Lane(Protocol[Item, Result_co]):
    """Work of one kind: writes all its pending items at once and returns one result for each.

    A result that is an exception is raised at the caller; an exception that escapes rolls everything back.

    It runs in the database's thread, may run again after a rollback, and so must change nothing but the database.
    """

    def __call__(self, tx: Transaction, items: list[Item], /) -> Sequence[Result_co | Exception]:
        """Write ``items``; the results are delivered after the commit."""
        ...


_Batch: TypeAlias = dict[Lane[Any, Any], tuple[list[Any], list[asyncio.Future[Any]]]]
"""What is written together: for each lane its items, and for each item the future that its caller awaits."""


class Database:
    """A SQLite file (or ``:memory:``) with one writer and a few readers, each an aiosqlite connection.

    ``after_commit`` is called on the event loop with the events of each transaction, in the order of the commits and
    before the callers that await that commit resume.
    """

    def __init__(
        self,
        path: str,
        *,
        readers: int = 2,
        checkpoint_pages: int = CHECKPOINT_PAGES,
        errors: ErrorLog | None = None,
    ) -> None:
        """Nothing is opened before :meth:`open`."""
        self.path = path
        self.after_commit: Callable[[list[Event]], None] = lambda events: None
        self.commits = 0
        self._errors = errors or ErrorLog()
        self._file = DatabaseFile(path)
        self._reader_count = readers
        self._writer_pragmas: Sequence[str] = _WRITER_PRAGMAS
        self._wal_limit = WalLimit(
            None if self._file.is_in_memory else path, busy_timeout_ms=_BUSY_TIMEOUT_MS, pages=checkpoint_pages
        )
        self._writer: Connection | None = None
        self._readers: list[Connection] = []
        self._pending: _Batch = {}
        self._batch: _Batch = {}
        self._committing: asyncio.Task[None] | None = None
        self._commit_items = 0
        self._commit_began = 0.0
        self._outage_since: float | None = None
        self._damage: OutageError | None = None

    @property
    def waiting(self) -> int:
        """How many items wait for their commit, including those of the commit in progress."""
        return self._commit_items + sum(len(items) for items, _ in self._pending.values())

    @property
    def is_open(self) -> bool:
        """Whether it can be written to."""
        return self._writer is not None

    def has_room(self) -> bool:
        """Whether the disk has space for more than a few pages."""
        return self._file.has_disk_space()

    @property
    def stalled_s(self) -> float:
        """How long the commit in progress has taken so far; 0 without one."""
        return time.monotonic() - self._commit_began if self._commit_items else 0.0

    async def open(self) -> None:
        """Create or open the file and its connections. Raises DatabaseError."""
        self._damage = self._outage_since = None
        self._file.prepare()
        try:
            await self._file.check_content()
            self._file.remember()
            self._writer = await Connection.open(self._connect(), self._writer_pragmas)
            await self._writer.run(lambda connection: connection.execute(_VERSIONS))
            self._open_wal_limit()
            if self._file.is_in_memory:
                self._readers = [self._writer]
            else:
                for _ in range(self._reader_count):
                    self._readers.append(await Connection.open(self._connect(), _READER_PRAGMAS))
        except sqlite3.Error as error:
            await self.close()
            raise translate(error) from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Commit what is pending, then close every connection and end its thread.

        Work pending in an event loop that was closed meanwhile is dropped: its callers are gone.
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
        return cast(T, await self.submit(_call_each, fn))

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` on the least busy reader. It must be quick: an open read lets the write-ahead log grow."""
        if not self._readers:
            raise NotRunningError("the database is not open")
        reader = min(self._readers, key=lambda connection: connection.pending)
        try:
            return await reader.run(fn)
        except sqlite3.Error as error:
            shown = translate(error)
            if is_error_of(error, DAMAGE):
                self._note_outage(shown, is_damage=True)
            raise shown from error

    def submit(self, lane: Lane[Item, Result], item: Item) -> "asyncio.Future[Result]":
        """Add ``item`` to the next commit; the future gives the lane's result for it. Never blocks."""
        if self._writer is None:
            raise NotRunningError("the database is not open")
        if self._damage is not None:
            raise OutageError(str(self._damage))
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
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
        """Where the task was cancelled or failed, fail the callers of its commit and commit the rest."""
        if self._committing is task:
            self._committing, lost, self._batch = None, self._batch, {}
            self._commit_items = 0
            if not task.cancelled() and (error := task.exception()) is not None:
                self._errors.add("commit", error, "the group commit failed and is started again", is_ours=True)
            _fail(lost, DatabaseError("the commit was interrupted; whether it is on disk is not known"))
            task.get_loop().call_later(_CANCELLED_PAUSE_S, self._begin_commits)

    async def _commit_pending(self) -> None:
        while self._pending:
            await asyncio.sleep(0)  # callers that the last commit resumed may add to this one
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
        writer = cast(Connection, self._writer)
        try:
            results, events = await writer.run(lambda connection: self._transact(connection, work))
        except Exception as error:  # noqa: BLE001 - raised at the callers
            await self._commit_failed(batch, error)
            return
        self.commits += 1
        if self._outage_since is not None:
            self._note_recovery()
        try:
            self.after_commit(events)
        except BaseException as error:  # noqa: BLE001 - the commit is on disk, whatever its listeners do
            self._errors.add("commit", error, "committed events could not be published", is_ours=True)
        for (_, futures), lane_results in zip(batch.values(), results, strict=True):
            for future, result in zip(futures, lane_results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _transact(
        self, connection: sqlite3.Connection, work: list[tuple[Lane[Any, Any], list[Any]]]
    ) -> tuple[list[Sequence[Any]], list[Event]]:
        """Write everything in one transaction; runs in the database's thread."""
        if connection.in_transaction:  # one that could not be rolled back
            connection.execute("ROLLBACK")
        self._wal_limit.begin(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
            tx = Transaction(connection)
            results = [_run_lane(lane, tx, items) for lane, items in work]
            for finish in tx.finishers.values():
                finish(tx)
            self._file.require_in_place()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the first error is the one to report
                    connection.execute("ROLLBACK")
            raise
        finally:
            self._wal_limit.end()
        return results, tx.events

    async def _commit_failed(self, batch: _Batch, error: Exception) -> None:
        """Commit each half of a failed batch by itself, until only the item at fault gets the error."""
        many = sum(len(items) for items, _ in batch.values())
        own = (sqlite3.IntegrityError, sqlite3.DataError)  # a broken constraint, a value too long: not the database
        shown = translate(error) if isinstance(error, sqlite3.Error) and not isinstance(error, own) else error
        if isinstance(shown, OutageError):
            self._note_outage(shown, is_damage=is_error_of(error, DAMAGE))
            if is_error_of(error, STALE):
                await self._reopen()
        if many == 1 or isinstance(shown, OutageError):
            _fail(batch, shown)
            return
        for half in _halves(batch, many // 2):
            await self._commit(half)

    def _note_outage(self, error: DatabaseError, *, is_damage: bool) -> None:
        """Log an outage once. A damaged file accepts nothing more until the next start has checked it."""
        if is_damage:
            self._damage = OutageError(str(error))
        if self._outage_since is None:
            self._outage_since = time.monotonic()
            logger.error("the database cannot be used, nothing is accepted until it can: %s", error)

    def _note_recovery(self) -> None:
        if not self.has_room():
            return  # this write was small enough; the next one may not be
        since, self._outage_since = self._outage_since, None
        if since is not None:
            logger.warning("the database can be used again after %.1f s", time.monotonic() - since)

    async def _reopen(self) -> None:
        """Replace a writer whose view of the file may be outdated; where no other can be opened, keep it for now."""
        try:
            if not (self._file.is_remembered and self._file.is_in_place()):
                return
        except OutageError:
            return  # the callers get the first error
        try:
            fresh = await Connection.open(self._connect(), self._writer_pragmas)
        except sqlite3.Error:
            return
        stale, self._writer = self._writer, fresh
        if stale is not None:
            with contextlib.suppress(sqlite3.Error):
                await stale.close()

    def _connect(self) -> aiosqlite.Connection:
        return aiosqlite.connect(self.path, isolation_level=None, cached_statements=256)

    def _open_wal_limit(self) -> None:
        try:
            self._wal_limit.open()
        except OSError as error:
            raise DatabaseError(f"cannot open {error.filename}: {error.strerror}; check its permissions") from error


def _run_lane(lane: Lane[Any, Any], tx: Transaction, items: list[Any]) -> Sequence[Any]:
    """Return a lane's results; a lane that returns too few must not leave a caller waiting."""
    results = lane(tx, items)
    if len(results) != len(items):
        raise RuntimeError(f"a lane gave {len(results)} results for {len(items)} items")
    return results


async def open_all(*stores: Coroutine[Any, Any, None]) -> None:
    """Open several stores of one database concurrently, each to completion. Raises the first error as it is."""
    for outcome in await asyncio.gather(*stores, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _halves(batch: _Batch, first: int) -> tuple[_Batch, _Batch]:
    """Return the first ``first`` items of a batch, and the rest, in their lanes and their order."""
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
    """Raise ``error`` at all callers that await a batch."""
    for _, futures in batch.values():
        for future in futures:
            if not future.done():
                future.set_exception(error)


def _call_each(tx: Transaction, items: list[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
    """The lane of ``write``: calls every function in turn."""
    return [fn(tx.connection) for fn in items]


def _statements(script: str) -> list[str]:
    """Split a script into statements; ``executescript`` would commit."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
