"""An online backup of the database: one consistent copy, made while others go on writing."""

import os
import sqlite3
from pathlib import Path

from asyncbg.core.ids import random_token
from asyncbg.errors import DatabaseError
from asyncbg.store.sqlite.database_file import translate

_BUSY_TIMEOUT_S = 30.0


class BackupError(DatabaseError):
    """No backup was made; nothing of it is left."""


def back_up(database: Path, target: Path) -> int:
    """Copy ``database`` to ``target``, readable by its owner only; returns the size in bytes.

    The copy is the database at one moment (``VACUUM INTO``, one read transaction), on disk when this returns, and
    holds nothing of what was deleted. Never overwrites. Raises BackupError, DatabaseError.
    """
    if os.path.lexists(target):
        raise BackupError(f"{target} is there already; name a file that is not, or remove it")
    partial = target.with_name(f".{target.name}.partial-{random_token():x}")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _copy(database, partial)
        _publish(partial, target)
    except OSError as error:
        reason = (error.strerror or "the file system refuses").lower()
        raise BackupError(f"cannot write {target}: {reason}") from None
    except sqlite3.Error as error:
        raise translate(error) from error
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def _copy(database: Path, partial: Path) -> None:
    """The whole database into an empty file."""
    connection = sqlite3.connect(
        f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None
    )
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("VACUUM INTO ?", (str(partial),))
    finally:
        connection.close()


def _publish(partial: Path, target: Path) -> None:
    """Give the copy its name once it is on disk; somebody else's file of that name is left alone."""
    _sync(partial)
    try:
        os.link(partial, target)
    except FileExistsError:
        raise BackupError(f"{target} is there already; name a file that is not, or remove it") from None
    _sync(target.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
