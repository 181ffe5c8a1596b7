"""Short-lived tickets for streams: a browser's EventSource can set no header, so it shows one of these in its URL.

They are in the database, as hashes, so that one that a process issued opens a stream at any other, and only once. An
EventSource reconnects with the URL that it was opened with, so the stream that a ticket opened is opened again by the
same ticket together with an id of that stream's log (the header Last-Event-ID), which a leaked URL does not have.
"""

import math
import re
import sqlite3
from collections.abc import Callable
from typing import Final

from asyncbg.auth.api_key import hash_token, new_token
from asyncbg.auth.audit import Audit
from asyncbg.core.clock import Clock
from asyncbg.errors import OverloadedError
from asyncbg.store.sqlite.database import Database

LIFETIME_S: Final = 60
MOST: Final = 10_000
"""Tickets that wait to be used, of all owners; one owner has a tenth of them at most."""

RESUMED_S: Final = 86_400
"""How long after its last use a ticket opens its stream again."""
MOST_USED: Final = 1_000
"""Tickets of one owner that open their streams again; the ones used longest ago are forgotten first."""

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
_USED = "ALTER TABLE stream_ticket ADD COLUMN used_ms INTEGER;"
MIGRATIONS = (_SCHEMA, _USED)

_PURGE = "DELETE FROM stream_ticket WHERE used_ms IS NULL AND expires_ms <= ? OR used_ms <= ?"
# One statement, so that two issues at once cannot both take the last place.
_ISSUE = """
INSERT INTO stream_ticket (hash, path, owner, holder, expires_ms) SELECT :hash, :path, :owner, :holder, :expires_ms
WHERE (SELECT count(*) FROM stream_ticket WHERE used_ms IS NULL) < :most
  AND (SELECT count(*) FROM stream_ticket WHERE owner = :owner AND used_ms IS NULL) < :most_of_owner
"""
# Looking and taking are one statement: of two that show the same ticket one gets the row.
_REDEEM = """
UPDATE stream_ticket SET used_ms = :now_ms
WHERE hash = :hash AND path = :path AND used_ms IS NULL AND expires_ms > :now_ms
RETURNING holder, owner
"""
_RESUME = """
UPDATE stream_ticket SET used_ms = :now_ms
WHERE hash = :hash AND path = :path AND used_ms > :used_after_ms AND expires_ms > :issued_after_ms
RETURNING holder, owner
"""
_FORGET = """
DELETE FROM stream_ticket WHERE hash IN (
    SELECT hash FROM stream_ticket WHERE used_ms IS NOT NULL
    AND owner = (SELECT owner FROM stream_ticket WHERE hash = :hash)
    ORDER BY used_ms DESC LIMIT -1 OFFSET :most
)
"""
_CURSOR = re.compile(r"([A-Za-z0-9._]{1,64})-[0-9]{1,18}")
_PURPOSE = "asyncbg-ticket"


class Tickets:
    """The tickets that wait to be used, and those whose streams may be opened again."""

    def __init__(
        self, database: Database, *, clock: Clock, epoch: Callable[[], str] = str, audit: Audit | None = None
    ) -> None:
        """Keep them in ``database``, which must be open before ``open`` is called; let them expire by ``clock``.

        ``epoch`` names the log that the streams tell.
        """
        self._database = database
        self._clock = clock
        self._epoch = epoch
        self._audit = audit

    async def open(self) -> None:
        """Create or upgrade the table."""
        await self._database.migrate("tickets", MIGRATIONS)

    async def issue(self, path: str, *, owner: str, holder: str) -> tuple[str, int]:
        """A new token for the stream at ``path``, and when it expires (ms). ``holder`` is JSON, given back.

        Raises OverloadedError when too many wait to be used.
        """
        token, now_ms = new_token(), self._clock.now_ms()
        expires_ms = now_ms + LIFETIME_S * 1000
        row = {
            "hash": hash_token(token, _PURPOSE), "path": path, "owner": owner, "holder": holder,
            "expires_ms": expires_ms, "most": MOST, "most_of_owner": MOST // 10,
        }  # fmt: skip

        def insert(connection: sqlite3.Connection) -> bool:
            connection.execute(_PURGE, (now_ms, now_ms - RESUMED_S * 1000))
            return connection.execute(_ISSUE, row).rowcount == 1

        if not await self._database.write(insert):
            raise OverloadedError("too many stream tickets wait to be used; come back later", retry_after_s=LIFETIME_S)
        return token, expires_ms

    async def redeem(
        self, token: str, path: str, *, cursor: str | None = None, longest_s: float = math.inf
    ) -> str | None:
        """What was said of the holder; None for a token that is no good here.

        It is good once within its lifetime. With a ``cursor``, an id of the log that the stream tells, it is good again
        until nobody has used it for :data:`RESUMED_S`, or ``longest_s`` after it was issued, and the audit log says so.
        Whether its holder's credentials still stand is for the caller to find out.
        """
        now_ms = self._clock.now_ms()
        wanted = {
            "hash": hash_token(token, _PURPOSE),
            "path": path,
            "now_ms": now_ms,
            "used_after_ms": now_ms - RESUMED_S * 1000,
            "issued_after_ms": now_ms + (LIFETIME_S - min(longest_s, 100 * RESUMED_S)) * 1000,
            "most": MOST_USED,
        }
        found = _CURSOR.fullmatch(cursor or "")
        may_resume = found is not None and found[1] == self._epoch()

        def redeem(connection: sqlite3.Connection) -> tuple[str, str] | None:
            row: tuple[str, str] | None = connection.execute(_REDEEM, wanted).fetchone()
            if row is not None:
                connection.execute(_FORGET, wanted)
            return row

        def resume(connection: sqlite3.Connection) -> tuple[str, str] | None:
            row: tuple[str, str] | None = connection.execute(_RESUME, wanted).fetchone()
            return row

        row = await self._database.write(redeem)
        if row is None and may_resume and (row := await self._database.write(resume)) and self._audit is not None:
            await self._audit.record("stream.resume", path, who=row[1])
        return row[0] if row else None
