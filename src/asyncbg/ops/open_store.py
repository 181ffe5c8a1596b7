"""Access to the store without running jobs: to read, submit and control them beside a running service."""

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from asyncbg.core.files import is_file
from asyncbg.errors import DatabaseError, SettingsError
from asyncbg.privacy import use_pseudonym_key
from asyncbg.privacy.encryption import Encryption
from asyncbg.settings import Settings
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.database_file import MEMORY, sqlite_path, translate
from asyncbg.store.sqlite.process_slot import ProcessSlot
from asyncbg.store.sqlite.wal_limit import WalLimit

_LOG_S, _POLL_S, _BUSY_MS = 30.0, 0.05, 1_000


def database_file(settings: Settings) -> Path:
    """Return the path of the database. Raises SettingsError for a database in memory."""
    path = sqlite_path(settings.database_url)
    if path == MEMORY:
        raise SettingsError(
            "ASYNCBG_DATABASE_URL: a database in memory is visible to its own process only; name a file"
        )
    return Path(path)


def existing_file(settings: Settings) -> Path:
    """Return the path of the database. Raises DatabaseError if the file does not exist."""
    path = database_file(settings)
    if not has_database(path):
        raise DatabaseError(f"there is no database {path}; set ASYNCBG_DATABASE_URL to an existing one")
    return path


def has_database(path: Path) -> bool:
    """Whether the database file exists. Raises DatabaseError if that cannot be determined."""
    try:
        return is_file(path)
    except OSError as error:
        raise DatabaseError(f"cannot access {path}: {error.strerror}; check its directory") from error


@asynccontextmanager
async def open_store(settings: Settings, *, create: bool = False) -> AsyncIterator[SQLiteBackend]:
    """Open the store of a service, whether it runs or not. Raises DatabaseError, SettingsError.

    A missing database is created with ``create``; without, an empty store in memory is opened.
    """
    if settings.privacy.pseudonym_key:
        use_pseudonym_key(settings.privacy.pseudonym_key.get_secret_value().encode())
    path = database_file(settings)
    shown = str(path) if create or has_database(path) else MEMORY
    encryption = Encryption(settings.privacy.keys())
    backend = SQLiteBackend(Database(shown, readers=1), encryption=encryption)
    await backend.attach()
    try:
        yield backend
    finally:
        await backend.close()


def empty_log(path: Path, *, wait_s: float = _LOG_S) -> bool:
    """Checkpoint the whole write-ahead log and truncate it, so that erased data remains in neither file. Blocking.

    Return False if a reader prevented it for ``wait_s`` seconds. Raises DatabaseError.
    """
    limit = WalLimit(str(path), busy_timeout_ms=_BUSY_MS)
    try:
        limit.open()
        with closing(sqlite3.connect(path, timeout=_BUSY_MS / 1000, isolation_level=None)) as connection:
            return _empty(limit, connection, wait_s)
    except sqlite3.Error as error:
        raise translate(error) from error
    except OSError as error:
        raise DatabaseError(f"cannot open {error.filename}: {error.strerror}") from error
    finally:
        limit.close()


def _empty(limit: WalLimit, connection: sqlite3.Connection, wait_s: float) -> bool:
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    deadline_s = time.monotonic() + wait_s
    while not limit.empty(connection):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def processes_at(path: Path) -> int:
    """Return how many processes run jobs of this database. Raises DatabaseError if that cannot be determined."""
    try:
        return len(ProcessSlot(path).held())
    except OSError as error:
        raise DatabaseError(f"cannot inspect the processes of {path}: {error.strerror}") from error
