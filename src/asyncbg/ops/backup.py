"""Online backup of the database: a consistent copy, made beside concurrent writers."""

import os
import sqlite3
from pathlib import Path

from asyncbg.core.ids import random_token
from asyncbg.errors import DatabaseError
from asyncbg.store.sqlite.database_file import translate

_BUSY_TIMEOUT_S = 30.0


class BackupError(DatabaseError):
    """The backup failed; its partial file was removed."""


def back_up(database: Path, target: Path) -> int:
    """Copy ``database`` to ``target``, readable by its owner only. Return the size in bytes.

    The copy is a snapshot (``VACUUM INTO``, one read transaction), is on disk on return, and contains no deleted data.
    An existing file is never overwritten. Raises BackupError, DatabaseError.
    """
    if os.path.lexists(target):
        raise BackupError(f"{target} already exists; choose another name, or remove it")
    partial = target.with_name(f".{target.name}.partial-{random_token():x}")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _copy(database, partial)
        _publish(partial, target)
    except OSError as error:
        reason = (error.strerror or "refused by the file system").lower()
        raise BackupError(f"cannot write {target}: {reason}") from None
    except sqlite3.Error as error:
        raise translate(error) from error
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def _copy(database: Path, partial: Path) -> None:
    """Copy the whole database into an empty file."""
    connection = sqlite3.connect(
        f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None
    )
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("VACUUM INTO ?", (str(partial),))
    finally:
        connection.close()


def _publish(partial: Path, target: Path) -> None:
    """Rename the synced copy; an existing file is never replaced."""
    _sync(partial)
    try:
        os.link(partial, target)
    except FileExistsError:
        raise BackupError(f"{target} already exists; choose another name, or remove it") from None
    _sync(target.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
