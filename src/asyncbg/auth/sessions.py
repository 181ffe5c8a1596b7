"""Sessions of browsers that signed in with an API key: a random token in a cookie, its hash in the database."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from asyncbg.auth.api_key import hash_token, new_token
from asyncbg.core.clock import Clock
from asyncbg.store.sqlite.database import Database

_SCHEMA = """
CREATE TABLE browser_session (
    hash       BLOB PRIMARY KEY,
    key_id     TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;
"""
MIGRATIONS = (_SCHEMA,)

_INSERT = "INSERT INTO browser_session (hash, key_id, expires_ms) VALUES (?, ?, ?)"
_PURGE = "DELETE FROM browser_session WHERE expires_ms <= ?"
_FIND = "SELECT key_id, expires_ms FROM browser_session WHERE hash = ? AND expires_ms > ?"
_SELECT_ACTIVE = "SELECT hash, key_id FROM browser_session WHERE expires_ms > ?"
_DELETE = "DELETE FROM browser_session WHERE hash = ?"
_PURPOSE = "asyncbg-session"


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser: ``id`` is the hash of its token, ``key_id`` the key it signed in with."""

    id: bytes
    key_id: str
    expires_ms: int


class Sessions:
    """The browser sessions of a service, shared by all its processes."""

    def __init__(self, database: Database, *, lifetime_s: float, clock: Clock) -> None:
        """Let every session expire ``lifetime_s`` after its start, used or not."""
        self._database = database
        self._lifetime_ms = int(lifetime_s * 1000)
        self._clock = clock

    async def open(self) -> None:
        """Create or upgrade the table."""
        await self._database.migrate("sessions", MIGRATIONS)

    async def create(self, key_id: str) -> tuple[str, Session]:
        """Create a session for a key and purge expired ones. Return its token and the stored session."""
        token, now_ms = new_token(), self._clock.now_ms()
        session = Session(hash_token(token, _PURPOSE), key_id, now_ms + self._lifetime_ms)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(_PURGE, (now_ms,))
            connection.execute(_INSERT, (session.id, key_id, session.expires_ms))

        await self._database.write(insert)
        return token, session

    async def find(self, token: str) -> Session | None:
        """Return the session of a token; None where it is unknown or expired."""
        wanted = (hash_token(token, _PURPOSE), self._clock.now_ms())
        row = await self._database.read(lambda connection: connection.execute(_FIND, wanted).fetchone())
        return Session(wanted[0], row[0], row[1]) if row else None

    async def delete(self, session_id: bytes) -> None:
        """Delete a session; an unknown one is ignored."""
        await self._database.write(lambda connection: connection.execute(_DELETE, (session_id,)).rowcount)

    async def active(self) -> Mapping[bytes, str]:
        """Return the key ids of all sessions that have not expired, by session id."""
        now_ms = self._clock.now_ms()
        return dict(
            await self._database.read(lambda connection: connection.execute(_SELECT_ACTIVE, (now_ms,)).fetchall())
        )
