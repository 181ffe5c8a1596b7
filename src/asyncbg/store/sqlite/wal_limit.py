"""The size limit of the write-ahead log; one connection at a time checkpoints it.

SQLite 3.7.0 to 3.51.2 can damage a database in write-ahead mode (https://www.sqlite.org/wal.html#walresetbug): where a
checkpoint begins while the whole log is in the database already, another connection may restart the log at the same
moment, and the checkpoint then marks pages of the new log as copied that were not. Two rules make that impossible for
every version and any number of processes:

* A connection checkpoints only while it holds the lock of ``<database>-checkpoint``, so no two do so concurrently.
* It acquires the lock before a commit and checkpoints right after it. Nothing of that commit is in the database yet,
  since no other connection checkpoints, and SQLite never restarts a log with such pages.
"""

import os
import sqlite3
import time

from asyncbg.errors import OutageError
from asyncbg.store.sqlite.file_lock import FileLock

_MIB = 1 << 20
WANTED_BYTES = 16 * _MIB
"""SQLite's own checkpoints keep the log below this, unless a reader is always in their way."""
MOST_BYTES = 40 * _MIB
"""No transaction begins beyond this; what the largest one adds leaves it under 64 MB."""
CHECKPOINT_PAGES = 2_000
"""A commit that leaves the log this long is followed by a checkpoint."""

_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 4.0
_PATIENCE_MS = 50
_LAST_PATIENCE_MS = 1_000
"""Before writes are refused: longer than any reader or writer of asyncbg takes."""
_LOCK_POLL_S = 0.002


class WalLimit:
    """The write-ahead log of one database file; used in the thread of its writer.

    A reader that stays in one transaction (a forgotten shell, a backup over hours) keeps every page written since, and
    the log would grow until the disk is full. Writes are refused before that, and accepted again once the reader has
    ended.
    """

    def __init__(self, database: str | None, *, busy_timeout_ms: int, pages: int = CHECKPOINT_PAGES) -> None:
        """``database`` None is in memory, without a log. Connections are passed with automatic checkpoints off."""
        self._path = None if database is None else f"{database}-wal"
        self._lock = None if database is None else FileLock(f"{database}-checkpoint")
        self._busy_timeout_ms = busy_timeout_ms
        self._pages = pages
        self._automatic: sqlite3.Connection | None = None
        self._next_try_s = 0.0
        self._pause_s = _PAUSE_S
        self._was_patient = False

    def open(self) -> None:
        """Open the file of the lock. Raises OSError."""
        if self._lock is not None:
            self._lock.open(create=True)

    def close(self) -> None:
        """Close the file of the lock."""
        if self._lock is not None:
            self._lock.close()

    def begin(self, connection: sqlite3.Connection) -> None:
        """Prepare a transaction: empty the log where it is too long. Raises OutageError where that fails.

        Until :meth:`end`, a checkpoint may follow the commit, if no other process checkpoints.
        """
        if self._lock is None:
            return
        self._check_size(connection)
        self._let_checkpoint(connection, allowed=self._lock.try_lock())

    def end(self) -> None:
        """End the transaction, whether committed or not."""
        if self._lock is not None:
            self._lock.unlock()

    def empty(self, connection: sqlite3.Connection, *, patience_ms: int = _PATIENCE_MS) -> bool:
        """Copy the whole log into the database and truncate it; wait up to ``patience_ms`` for readers and writers.

        False: a reader or a writer blocks it, or another process checkpoints. Raises sqlite3.Error.
        """
        if self._lock is None or not self._lock_within(patience_ms):
            return self._lock is None
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")  # nosemgrep: no-sql-from-text
        try:
            self._let_checkpoint(connection, allowed=False)
            _commit_one_page(connection)
            return not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if not str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_BUSY"):
                raise
            return False
        finally:
            connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")  # nosemgrep: no-sql-from-text
            self._lock.unlock()

    def _check_size(self, connection: sqlite3.Connection) -> None:
        size = self._size()
        if size <= WANTED_BYTES:
            return
        is_full = size > MOST_BYTES
        if time.monotonic() >= self._next_try_s or (is_full and not self._was_patient):
            self._was_patient = is_full
            is_empty = self.empty(connection, patience_ms=_LAST_PATIENCE_MS if is_full else _PATIENCE_MS)
            # A failed try adds a page: while a reader stays for hours, tries become less frequent.
            self._pause_s = _PAUSE_S if is_empty else min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next_try_s = time.monotonic() + self._pause_s
            size = self._size()
        if size > MOST_BYTES:
            raise OutageError(
                f"the write-ahead log has grown to {size // _MIB} MiB, since a reader stays in one transaction; "
                "end that reader (asyncbg doctor names it)"
            )

    def _lock_within(self, patience_ms: int) -> bool:
        """Acquire the lock, which another writing process holds for the time of a commit."""
        deadline_s = time.monotonic() + patience_ms / 1000
        while self._lock is not None and not self._lock.try_lock():
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_LOCK_POLL_S)
        return self._lock is not None

    def _let_checkpoint(self, connection: sqlite3.Connection, *, allowed: bool) -> None:
        """Switch automatic checkpoints, which follow a commit of this connection, on or off."""
        if allowed is not (self._automatic is connection):
            pages = self._pages if allowed else 0
            connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")  # nosemgrep: no-sql-from-text
            self._automatic = connection if allowed else None

    def _size(self) -> int:
        try:
            return 0 if self._path is None else os.stat(self._path).st_size  # noqa: PTH116 - once a commit
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise OutageError(f"the write-ahead log cannot be checked: {error.strerror}") from error


def _commit_one_page(connection: sqlite3.Connection) -> None:
    """Append a page to the log, without a change."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        connection.execute(f"PRAGMA user_version = {version}")  # nosemgrep: no-sql-from-text
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
