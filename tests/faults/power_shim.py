"""The real store above a watched disk: SQLite's file system calls go through a shim (apsw) that writes them down.

Everything above is the store's own: its statements, pragmas, group commits and checkpoints. They run in the SQLite that
apsw brings along; the shared memory of the write-ahead log and the locks are those of the default file system layer.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

import aiosqlite
import apsw

from asyncbg.store.sqlite.database import Database
from tests.faults.power_disk import Deleted, Opened, SyncBegan, Synced, Truncated, Written

_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
_WATCHED = _JOURNALS | apsw.SQLITE_OPEN_MAIN_DB
_TABLES = ("schema_version", "log", "job", "event", "schedule")
_numbers = count()

Log = list[object]
"""What happened to the disk and what the store said of it, in order."""

Rows = frozenset[int]
"""Every row of the store, by the hash of its table and its values."""


@dataclass(frozen=True, slots=True)
class Committing:
    """A transaction is about to commit; what the store holds if it does."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The latest commit was acknowledged: whoever waited for it goes on, believing that it is on disk."""


class Reads(Protocol):
    """Any connection that answers a statement."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Any:
        """Run one statement."""
        ...


def read_rows(connection: Reads) -> Rows:
    """Every row of the store, as this connection sees it."""
    found = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}
    return frozenset(
        hash((table, *row))
        for table in _TABLES
        if table in found
        for row in connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - names of ours
    )


class _WatchedFile(apsw.VFSFile):
    """Writes down what is done to one open file, then does it."""

    def __init__(self, log: Log, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._log = log
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = os.path.basename(path) if path and flags[0] & _WATCHED else None  # noqa: PTH119 - a string
        self._syncs_directory = bool(flags[0] & _JOURNALS)
        super().__init__("", name, flags)
        if self._name is not None:
            log.append(Opened(self._name))

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - SQLite's name
        super().xWrite(data, offset)
        if self._name is not None:
            self._log.append(Written(self._name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        super().xTruncate(newsize)
        if self._name is not None:
            self._log.append(Truncated(self._name, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        if self._name is not None:
            self._log.append(SyncBegan(self._name))
        super().xSync(flags)
        if self._name is not None:
            self._log.append(Synced(self._name, self._syncs_directory))
            self._syncs_directory = False


class _Watch(apsw.VFS):
    """The default file system layer, with every file of a database watched."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.name = f"watched-{next(_numbers)}"
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return _WatchedFile(self._log, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        super().xDelete(filename, syncdir)
        self._log.append(Deleted(Path(filename).name, syncdir))


class _Answer:
    """The rows of one statement, as a cursor of the standard library hands them out."""

    def __init__(self, rows: list[Any], rowcount: int) -> None:
        self._rows, self.rowcount = iter(rows), rowcount

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def close(self) -> None:
        """Nothing is open: the rows were fetched."""


class _WatchedConnection:
    """An apsw connection, with as much of the standard library's interface as the store uses."""

    def __init__(self, path: str, vfs: str, log: Log) -> None:
        self._apsw = apsw.Connection(path, vfs=vfs)
        self._log = log

    @property
    def in_transaction(self) -> bool:
        return self._apsw.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> _Answer:
        if sql == "COMMIT":
            self._log.append(Committing(read_rows(self)))
        try:
            rows = self._apsw.execute(sql, parameters).fetchall()
        except apsw.ConstraintError as error:
            raise sqlite3.IntegrityError(str(error)) from error
        except apsw.Error as error:
            raise sqlite3.OperationalError(str(error)) from error
        return _Answer(rows, self._apsw.changes())

    def close(self) -> None:
        self._apsw.close()


class WatchedDatabase(Database):
    """The store's own database, its connections watched; ``pragmas`` come after its own."""

    def __init__(self, path: str, *, vfs: str, log: Log, pragmas: Sequence[str] = (), pages: int) -> None:
        """Write what happens to ``path`` into ``log``; a checkpoint follows a log of so many pages."""
        super().__init__(path, checkpoint_pages=pages)
        self._vfs, self._log = vfs, log
        self._writer_pragmas = (*self._writer_pragmas, *pragmas)

    def _connect(self) -> aiosqlite.Connection:
        def connect() -> sqlite3.Connection:
            return cast(sqlite3.Connection, _WatchedConnection(self.path, self._vfs, self._log))

        return aiosqlite.Connection(connect, iter_chunk_size=64)

    async def _commit(self, batch: dict[Any, Any]) -> None:
        commits = self.commits
        await super()._commit(batch)
        if self.commits > commits:  # nobody who waited for it has gone on yet
            self._log.append(Acknowledged())


@contextmanager
def watched(log: Log) -> Iterator[str]:
    """The name of a file system layer that writes into ``log``."""
    watch = _Watch(log)
    try:
        yield watch.name
    finally:
        watch.unregister()
