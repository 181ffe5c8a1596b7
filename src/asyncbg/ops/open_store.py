"""The store, opened beside whoever runs its jobs: to look, to submit and to steer, never to run anything."""

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
    """The file of the database. Raises SettingsError where there is none to share."""
    path = sqlite_path(settings.database_url)
    if path == MEMORY:
        raise SettingsError("ASYNCBG_DATABASE_URL: a database in memory is seen by its own process only; name a file")
    return Path(path)


def existing_file(settings: Settings) -> Path:
    """The file of the database, which is there. Raises DatabaseError where it is not."""
    path = database_file(settings)
    if not has_database(path):
        raise DatabaseError(f"there is no database {path}; set ASYNCBG_DATABASE_URL to the one you mean")
    return path


def has_database(path: Path) -> bool:
    """Whether there is a database file. Raises DatabaseError where that cannot be told."""
    try:
        return is_file(path)
    except OSError as error:
        raise DatabaseError(f"cannot look at {path}: {error.strerror}; check its directory") from error


@asynccontextmanager
async def open_store(settings: Settings, *, create: bool = False) -> AsyncIterator[SQLiteBackend]:
    """The store of a service that runs or does not. Raises DatabaseError, SettingsError.

    Where there is no database yet it is made with ``create``, and an empty one is shown without.
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
    """Blocking: bring the whole write-ahead log into the database and empty it, so that what was erased is in neither.

    False: a reader was in the way all the time. Raises DatabaseError.
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
    """How many processes run the jobs of this database now. Raises DatabaseError where that cannot be told."""
    try:
        return len(ProcessSlot(path).held())
    except OSError as error:
        raise DatabaseError(f"cannot look at the processes of {path}: {error.strerror}") from error
