"""Keeps the write-ahead log of a database short, whatever its readers do."""

import os
import sqlite3
import time

from asyncbg.errors import OutageError

_MIB = 1 << 20
WANTED_BYTES = 16 * _MIB
"""SQLite's own checkpoints keep the log below this, unless a reader is always in their way."""
MOST_BYTES = 40 * _MIB
"""No transaction begins beyond this; what the largest one adds leaves it under 64 MB."""

_PAUSE_S = 0.25
_PATIENCE_MS = 50


class LogLimit:
    """Watches the log of one database file; belongs to the thread of its writer.

    A reader that stays in one transaction (a forgotten shell, a backup over hours) keeps every page written since, and
    the log would grow until the disk is full. So writing stops before that, and goes on by itself once the reader is
    gone.
    """

    def __init__(self, database: str | None, *, checkpoints: bool, busy_timeout_ms: int) -> None:
        """Watch ``<database>-wal``; None (in memory) has none. Without ``checkpoints`` the log is only measured."""
        self._path = None if database is None else f"{database}-wal"
        self._checkpoints = checkpoints
        self._busy_timeout_ms = busy_timeout_ms
        self._next_try_s = 0.0

    def check(self, connection: sqlite3.Connection) -> None:
        """Make room if there is too little; call it before a transaction. Raises OutageError where there is none."""
        size = self._size()
        if size <= WANTED_BYTES:
            return
        if self._checkpoints and time.monotonic() >= self._next_try_s:
            self._shorten(connection)
            size = self._size()
        if size > MOST_BYTES:
            raise OutageError(
                f"the write-ahead log has grown to {size // _MIB} MiB, since a reader stays in one transaction; "
                "end that reader (asyncbg doctor names it)"
            )

    def _shorten(self, connection: sqlite3.Connection) -> None:
        """Bring all of the log into the database and empty it; a reader in the way is waited for, but not long."""
        connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")  # nosemgrep: no-sql-from-text
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")  # nosemgrep: no-sql-from-text
            self._next_try_s = time.monotonic() + _PAUSE_S

    def _size(self) -> int:
        try:
            return 0 if self._path is None else os.stat(self._path).st_size  # noqa: PTH116 - once a commit
        except OSError:
            return 0
