"""The file of a SQLite database: its checks before use and at each commit, and the errors of SQLite in plain words."""

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

import aiosqlite

from asyncbg.errors import DatabaseError, OutageError, SettingsError

MEMORY = ":memory:"
OLDEST_SQLITE = (3, 38, 0)
"""The first version with ``->>``."""

_URL = "sqlite:///"
_CHECKED_BYTES = 64 * 1024 * 1024
"""A file up to this size is checked in full at the start, so damage is reported before anything is accepted."""
_LEAST_BYTES = 256 * 1024

_REMEDIES = (
    ("SQLITE_FULL", "the disk is full; free some space"),
    ("SQLITE_BUSY", "another transaction holds the database; end it (or join it: connection=), then retry"),
    ("SQLITE_READONLY", "the database is read-only; check the permissions of the file and its directory"),
    ("SQLITE_CANTOPEN", "the database cannot be opened; check that its directory exists and is writable"),
    ("SQLITE_CORRUPT", "the database is damaged; restore it from a backup"),
    ("SQLITE_NOTADB", "the file is no SQLite database; check ASYNCBG_DATABASE_URL"),
    ("SQLITE_IOERR", "the disk reports an error; check the device"),
)
"""Errors of the database as a whole, whichever statement met them, and what to do about each."""

DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
STALE = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")
"""After these a connection may hold an outdated view of the file."""


def sqlite_path(url: str) -> str:
    """Return the file of a ``sqlite:///`` URL. Raises SettingsError for another kind of database."""
    if not url.startswith(_URL):
        raise SettingsError(
            "ASYNCBG_DATABASE_URL: only sqlite:/// is supported by this version; PostgreSQL comes later"
        )
    return url.removeprefix(_URL)


def translate(error: sqlite3.Error) -> DatabaseError:
    """Return an error that says what is wrong with the database and what to do about it."""
    code = getattr(error, "sqlite_errorname", "") or type(error).__name__
    remedy = next((text for prefix, text in _REMEDIES if code.startswith(prefix)), None)
    return OutageError(f"{remedy} ({code})") if remedy else DatabaseError(f"{error} ({code})")


def is_error_of(error: BaseException, codes: tuple[str, ...]) -> bool:
    """Whether SQLite's name of the error begins with one of ``codes``."""
    return str(getattr(error, "sqlite_errorname", "")).startswith(codes)


class DatabaseFile:
    """A database file by its path, and which file was there when it was opened."""

    def __init__(self, path: str) -> None:
        """``path`` may be ``:memory:``: then every check passes."""
        self.path = path
        self._absolute_path = path
        self._identity: tuple[int, int] | None = None

    @property
    def is_in_memory(self) -> bool:
        """Whether there is no file."""
        return self.path == MEMORY

    def prepare(self) -> None:
        """Refuse what cannot work, and create the file so that only its owner can read it. Raises DatabaseError."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise DatabaseError(f"SQLite {sqlite3.sqlite_version} is too old; asyncbg needs 3.38 or newer")
        if self.is_in_memory:
            return
        path = Path(self.path)
        if not path.parent.is_dir():
            raise DatabaseError(f"the directory {path.parent} of the database does not exist; create it")
        with contextlib.suppress(OSError):  # a file that cannot be created is reported by the connection
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))

    async def check_content(self) -> None:
        """Refuse a damaged file before it is written to. Raises DatabaseError."""
        if not self._is_quick_to_check():
            return
        verdict = "ok"
        try:
            async with aiosqlite.connect(f"file:{quote(self.path)}?mode=ro", uri=True) as connection:
                for (line,) in await connection.execute_fetchall("PRAGMA quick_check(1)"):
                    verdict = str(line)
        except sqlite3.Error as error:
            if is_error_of(error, DAMAGE):
                raise translate(error) from error
        if verdict != "ok":
            raise OutageError(f"the database is damaged; restore it from a backup ({' '.join(verdict.split())[:200]})")

    def _is_quick_to_check(self) -> bool:
        file = Path(self.path)
        return not self.is_in_memory and file.is_file() and 0 < file.stat().st_size <= _CHECKED_BYTES

    def remember(self) -> None:
        """Remember which file is at the path now. Raises OutageError."""
        self._absolute_path = os.path.abspath(self.path)  # noqa: PTH100 - symbolic links are kept
        self._identity = None if self.is_in_memory else _identity(self._absolute_path)

    def is_in_place(self) -> bool:
        """Whether the remembered file is still at the path. Raises OutageError where that cannot be determined."""
        return self._identity is None or _identity(self._absolute_path) == self._identity

    def require_in_place(self) -> None:
        """Raise OutageError where the file was moved or deleted: writes into it would be lost with this process."""
        if not self.is_in_place():
            raise OutageError("the database file was moved or deleted while in use; put it back, or restart")

    @property
    def is_remembered(self) -> bool:
        """Whether there is a file to compare with."""
        return self._identity is not None

    def has_disk_space(self) -> bool:
        """Whether the disk has space for more than a few pages."""
        if self._identity is None:
            return True
        try:
            disk = os.statvfs(os.path.dirname(self._absolute_path))  # noqa: PTH120 - a path is a string here
        except OSError:
            return True  # an unanswered question does not make the disk full: the next write reports the error
        return disk.f_bavail * disk.f_frsize >= _LEAST_BYTES


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at a path; None where there is none. Raises OutageError."""
    try:
        found = os.stat(path)  # noqa: PTH116 - once a commit: the quickest way
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutageError(f"the database file cannot be checked: {error.strerror}; check its directory") from error
    return found.st_dev, found.st_ino
