"""Stream tickets: short-lived, single-use tokens in the URL of a stream, since EventSource cannot set headers.

Their hashes are stored in the database, so that a ticket issued by one process opens a stream at any other, and only
once. An EventSource reconnects with its original URL, so the same ticket reopens its stream together with an event id
of that log (the header Last-Event-ID), which a leaked URL does not contain.
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
MAX_UNUSED: Final = 10_000
"""Maximum number of unused tickets of all owners; one owner may have a tenth of them."""

RESUME_S: Final = 86_400
"""How long after its last use a ticket can reopen its stream."""
MAX_USED: Final = 1_000
"""Maximum number of one owner's used tickets that can reopen streams; the least recently used are evicted."""

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
# One statement, so that two concurrent inserts cannot exceed the limit.
_ISSUE = """
INSERT INTO stream_ticket (hash, path, owner, holder, expires_ms) SELECT :hash, :path, :owner, :holder, :expires_ms
WHERE (SELECT count(*) FROM stream_ticket WHERE used_ms IS NULL) < :most
  AND (SELECT count(*) FROM stream_ticket WHERE owner = :owner AND used_ms IS NULL) < :most_of_owner
"""
# One statement, so that only one of two concurrent requests can use the ticket.
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
_EVICT = """
DELETE FROM stream_ticket WHERE hash IN (
    SELECT hash FROM stream_ticket WHERE used_ms IS NOT NULL
    AND owner = (SELECT owner FROM stream_ticket WHERE hash = :hash)
    ORDER BY used_ms DESC LIMIT -1 OFFSET :most
)
"""
_CURSOR = re.compile(r"([A-Za-z0-9._]{1,64})-[0-9]{1,18}")
_PURPOSE = "asyncbg-ticket"


class Tickets:
    """The unused tickets of a service, and the used ones that can reopen their streams."""

    def __init__(
        self, database: Database, *, clock: Clock, epoch: Callable[[], str] = str, audit: Audit | None = None
    ) -> None:
        """Store them in ``database``, which must be open before ``open`` is called; let them expire by ``clock``.

        ``epoch`` returns the epoch of the event log, which a reconnect has to name.
        """
        self._database = database
        self._clock = clock
        self._epoch = epoch
        self._audit = audit

    async def open(self) -> None:
        """Create or upgrade the table."""
        await self._database.migrate("tickets", MIGRATIONS)

    async def issue(self, path: str, *, owner: str, holder: str) -> tuple[str, int]:
        """Return a token for the stream at ``path`` and when it expires (ms). ``holder`` is JSON for ``redeem``.

        Raise OverloadedError where too many tickets are unused.
        """
        token, now_ms = new_token(), self._clock.now_ms()
        expires_ms = now_ms + LIFETIME_S * 1000
        row = {
            "hash": hash_token(token, _PURPOSE), "path": path, "owner": owner, "holder": holder,
            "expires_ms": expires_ms, "most": MAX_UNUSED, "most_of_owner": MAX_UNUSED // 10,
        }  # fmt: skip

        def insert(connection: sqlite3.Connection) -> bool:
            connection.execute(_PURGE, (now_ms, now_ms - RESUME_S * 1000))
            return connection.execute(_ISSUE, row).rowcount == 1

        if not await self._database.write(insert):
            raise OverloadedError("too many stream tickets are unused; try again later", retry_after_s=LIFETIME_S)
        return token, expires_ms

    async def redeem(
        self, token: str, path: str, *, cursor: str | None = None, max_age_s: float = math.inf
    ) -> str | None:
        """Return the ``holder`` that the ticket was issued with; None where the token is not valid for ``path``.

        A ticket is valid once within its lifetime. With a ``cursor``, an event id of this log, it is valid again until
        it was unused for :data:`RESUME_S`, or until ``max_age_s`` after it was issued; the audit log records that use.
        The caller of this method has to check whether the holder's credentials are still valid.
        """
        now_ms = self._clock.now_ms()
        wanted = {
            "hash": hash_token(token, _PURPOSE),
            "path": path,
            "now_ms": now_ms,
            "used_after_ms": now_ms - RESUME_S * 1000,
            "issued_after_ms": now_ms + (LIFETIME_S - min(max_age_s, 100 * RESUME_S)) * 1000,
            "most": MAX_USED,
        }
        found = _CURSOR.fullmatch(cursor or "")
        may_resume = found is not None and found[1] == self._epoch()

        def redeem(connection: sqlite3.Connection) -> tuple[str, str] | None:
            row: tuple[str, str] | None = connection.execute(_REDEEM, wanted).fetchone()
            if row is not None:
                connection.execute(_EVICT, wanted)
            return row

        def resume(connection: sqlite3.Connection) -> tuple[str, str] | None:
            row: tuple[str, str] | None = connection.execute(_RESUME, wanted).fetchone()
            return row

        row = await self._database.write(redeem)
        if row is None and may_resume and (row := await self._database.write(resume)) and self._audit is not None:
            await self._audit.record("stream.resume", path, who=row[1])
        return row[0] if row else None
