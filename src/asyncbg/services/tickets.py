"""Short-lived tickets for streams: a browser's EventSource can set no header, so it shows one of these in its URL.

They are in the database, as hashes, so that one that a process issued opens a stream at any other, and only once.
"""

import sqlite3
from typing import Final

from asyncbg.api_key import hash_token, new_token
from asyncbg.clock import Clock
from asyncbg.database import Database
from asyncbg.errors import OverloadedError

LIFETIME_S: Final = 60
MOST: Final = 10_000
"""Tickets that wait to be used, of all owners; one owner has a tenth of them at most."""

_SCHEMA = """
CREATE TABLE stream_ticket (
    hash       BLOB PRIMARY KEY,
    path       TEXT NOT NULL,
    owner      TEXT NOT NULL,
    holder     TEXT NOT NULL CHECK (json_valid(holder)),
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX stream_ticket_by_owner ON stream_ticket (owner);
"""
MIGRATIONS = (_SCHEMA,)

_PURGE = "DELETE FROM stream_ticket WHERE expires_ms <= ?"
# One statement, so that two issues at once cannot both take the last place.
_ISSUE = """
INSERT INTO stream_ticket (hash, path, owner, holder, expires_ms) SELECT :hash, :path, :owner, :holder, :expires_ms
WHERE (SELECT count(*) FROM stream_ticket) < :most
  AND (SELECT count(*) FROM stream_ticket WHERE owner = :owner) < :most_of_owner
"""
# Looking and taking are one statement: of two that show the same ticket one gets the row.
_REDEEM = "DELETE FROM stream_ticket WHERE hash = ? AND path = ? AND expires_ms > ? RETURNING holder"
_PURPOSE = "asyncbg-ticket"


class Tickets:
    """The tickets that were issued and that nobody has shown yet."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """Keep them in ``database``, which must be open before ``open`` is called; let them expire by ``clock``."""
        self._database = database
        self._clock = clock

    async def open(self) -> None:
        """Create or upgrade the table."""
        await self._database.migrate("tickets", MIGRATIONS)

    async def issue(self, path: str, *, owner: str, holder: str) -> tuple[str, int]:
        """A new token for the stream at ``path``, and when it expires (ms). ``holder`` is JSON, given back once.

        Raises OverloadedError when too many wait to be used.
        """
        token, now_ms = new_token(), self._clock.now_ms()
        expires_ms = now_ms + LIFETIME_S * 1000
        row = {
            "hash": hash_token(token, _PURPOSE), "path": path, "owner": owner, "holder": holder,
            "expires_ms": expires_ms, "most": MOST, "most_of_owner": MOST // 10,
        }  # fmt: skip

        def insert(connection: sqlite3.Connection) -> bool:
            connection.execute(_PURGE, (now_ms,))
            return connection.execute(_ISSUE, row).rowcount == 1

        if not await self._database.write(insert):
            raise OverloadedError("too many stream tickets wait to be used; come back later", retry_after_s=LIFETIME_S)
        return token, expires_ms

    async def redeem(self, token: str, path: str) -> str | None:
        """What was said of the holder, once; None for a token that is no good here."""
        wanted = (hash_token(token, _PURPOSE), path, self._clock.now_ms())
        row = await self._database.write(lambda connection: connection.execute(_REDEEM, wanted).fetchone())
        return str(row[0]) if row else None
