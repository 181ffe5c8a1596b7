"""The store, opened beside whoever runs its jobs: to look, to submit and to steer, never to run anything."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from asyncbg.backends.place import Place
from asyncbg.backends.sqlite import SQLiteBackend
from asyncbg.background import sqlite_path
from asyncbg.database import MEMORY, Database
from asyncbg.errors import DatabaseError, SettingsError
from asyncbg.redact import use_pseudonym_key
from asyncbg.settings import Settings


def database_file(settings: Settings) -> Path:
    """The file of the database. Raises SettingsError where there is none to share."""
    path = sqlite_path(settings.database_url)
    if path == MEMORY:
        raise SettingsError("ASYNCBG_DATABASE_URL: a database in memory is seen by its own process only; name a file")
    return Path(path)


def existing_file(settings: Settings) -> Path:
    """The file of the database, which is there. Raises DatabaseError where it is not."""
    path = database_file(settings)
    if not path.is_file():
        raise DatabaseError(f"there is no database {path}; set ASYNCBG_DATABASE_URL to the one you mean")
    return path


@asynccontextmanager
async def open_store(settings: Settings, *, create: bool = False) -> AsyncIterator[SQLiteBackend]:
    """The store of a service that runs or does not. Raises DatabaseError, SettingsError.

    Where there is no database yet it is made with ``create``, and an empty one is shown without.
    """
    if settings.privacy.pseudonym_key:
        use_pseudonym_key(settings.privacy.pseudonym_key.get_secret_value().encode())
    path = database_file(settings)
    shown = str(path) if create or path.exists() else MEMORY
    backend = SQLiteBackend(Database(shown, readers=1, checkpoints=False))
    await backend.attach()
    try:
        yield backend
    finally:
        await backend.close()


def processes_at(path: Path) -> int:
    """How many processes run the jobs of this database now."""
    return len(Place(path).held())
