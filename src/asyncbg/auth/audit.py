"""The audit log: an append-only table of who did what to which key or job, when, and with what outcome.

It holds no personal data: keys appear by name, jobs by id, and an owner that the application names by an e-mail address
appears as a pseudonym. Should a row contain an address all the same, an erasure (and nothing else) may replace it by a
pseudonym; the row itself stays.
"""

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from asyncbg.core.clock import Clock, SystemClock, rfc3339
from asyncbg.core.keyset_page import KeysetPage, build_page, parse_cursor
from asyncbg.errors import JobError, OutageError
from asyncbg.privacy import redact
from asyncbg.store.sqlite.database import Database

logger = logging.getLogger("asyncbg")

KEPT_DAYS: Final = 400
"""Rows older than this are deleted, so that the log does not grow without bound."""
REFUSALS_PER_MINUTE: Final = 60
"""Refusals recorded one by one. More in the same minute are counted in one row, so that they cannot fill the disk."""

COMMAND_LINE: Final = "command line"
"""The ``who`` of an action taken by a command on this machine."""

_Row = tuple[int, str, str, str, str, str]
_MINUTE_MS = 60_000
_MAX_CHARS = 200

# Triggers reject updates, and deletions of rows younger than KEPT_DAYS by the database's clock, whichever program opens
# the file.
_SCHEMA = """
CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms   INTEGER NOT NULL CHECK (at_ms >= 0),
    who     TEXT NOT NULL,
    what    TEXT NOT NULL,
    which   TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('done', 'failed', 'refused')),
    reason  TEXT NOT NULL
);
CREATE INDEX audit_by_time ON audit (at_ms);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit WHEN NEW.seq IN (SELECT seq FROM audit) BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
WHEN OLD.at_ms > (strftime('%s', 'now') - 400 * 86400) * 1000 BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
"""
MIGRATIONS = (_SCHEMA,)

_DROP_TRIGGER = "DROP TRIGGER audit_is_not_changed"
_SELECT_TRIGGER = "SELECT sql FROM sqlite_master WHERE name = 'audit_is_not_changed'"
_SELECT_TEXTS = "SELECT seq, who, which, reason FROM audit"
_REPLACE_TEXTS = "UPDATE audit SET who = ?, which = ?, reason = ? WHERE seq = ?"

_INSERT = "INSERT INTO audit (at_ms, who, what, which, outcome, reason) VALUES (?, ?, ?, ?, ?, ?)"
_EXPIRE = """
DELETE FROM audit WHERE at_ms <= ? AND at_ms <= (strftime('%s', 'now') - ? * 86400) * 1000
"""
_READ = """
SELECT json_group_array(json_array(seq, at_ms, who, what, which, outcome, reason)) FROM (
    SELECT * FROM audit WHERE seq < :before AND (:what IS NULL OR what = :what) AND (:who IS NULL OR who = :who)
    ORDER BY seq DESC LIMIT :limit)
"""


class AuditOutcome(StrEnum):
    """The outcome of an action: done, failed, or refused for lack of permission."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row: ``who`` is an owner (``?`` where the caller is unknown), ``what`` an action such as ``key.revoke``."""

    seq: int
    at_ms: int
    who: str
    what: str
    which: str
    outcome: AuditOutcome
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON-compatible values."""
        return {"at": rfc3339(self.at_ms), **{name: value for name, value in asdict(self).items() if name != "at_ms"}}


class Audit:
    """The audit log of one database."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """Store it in ``database``, which must be open before ``open`` is called."""
        self._database = database
        self._clock = clock
        self._minute = 0
        self._refused = 0
        self._pending: set[asyncio.Future[Any]] = set()

    async def open(self) -> None:
        """Create or upgrade the table, and delete expired rows."""
        await self._database.migrate("audit", MIGRATIONS)
        expired = (self._clock.now_ms() - KEPT_DAYS * 86_400_000, KEPT_DAYS)
        await self._database.write(lambda connection: connection.execute(_EXPIRE, expired).rowcount)

    async def record(
        self, what: str, which: str = "", *, who: str, outcome: AuditOutcome = AuditOutcome.DONE, reason: str = ""
    ) -> None:
        """Append a row; it is on disk when this returns."""
        row = self._row(what, which, who, outcome, reason)
        await self._database.write(lambda connection: connection.execute(_INSERT, row).rowcount)

    def refuse(self, what: str, which: str = "", *, who: str, reason: str) -> None:
        """Append the row of a refusal with a later commit, without waiting; above the rate limit only count it."""
        minute = self._clock.now_ms() // _MINUTE_MS
        previous, self._refused = self._refused, self._refused + 1
        if minute != self._minute:
            self._minute, self._refused = minute, 1
            if previous > REFUSALS_PER_MINUTE:
                more = f"{previous - REFUSALS_PER_MINUTE} more in that minute"
                self._submit(self._row("refusals", "", "?", AuditOutcome.REFUSED, more))
        if self._refused <= REFUSALS_PER_MINUTE:
            self._submit(self._row(what, which, who, AuditOutcome.REFUSED, reason))

    async def read(
        self, *, what: str | None = None, who: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> KeysetPage[AuditEntry]:
        """Return a page of rows, newest first. Raise BadCursorError."""
        wanted = {"before": parse_cursor(cursor), "what": what, "who": who, "limit": limit + 1}
        rows = await self._database.read(lambda connection: connection.execute(_READ, wanted).fetchone()[0])
        return build_page([(row[0], _entry(row)) for row in json.loads(rows)], limit)

    async def pseudonymize(self, replace: Callable[[str], str]) -> int:
        """Replace the texts of all rows by what ``replace`` returns for them. Return the number of changed rows.

        Only the erasure of a person may call this: one transaction drops the trigger that rejects updates and creates
        it again.
        """
        rows = await self._database.read(lambda connection: connection.execute(_SELECT_TEXTS).fetchall())
        changed = [(*shown, seq) for seq, *texts in rows if (shown := [replace(text) for text in texts]) != texts]
        if changed:
            await self._database.write(lambda connection: _update(connection, changed))
        return len(changed)

    def _row(self, what: str, which: str, who: str, outcome: AuditOutcome, reason: str) -> _Row:
        shown = [redact(text)[:_MAX_CHARS] for text in (which, reason)]
        return (self._clock.now_ms(), redact(who)[:_MAX_CHARS], what, shown[0], outcome.value, shown[1])

    def _submit(self, row: _Row) -> None:
        written = self._database.submit(_append, row)
        self._pending.add(written)
        written.add_done_callback(self._written)

    def _written(self, future: "asyncio.Future[Any]") -> None:
        self._pending.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, OutageError):  # the database logs its own outages
            logger.error("refused requests could not be recorded in the audit log", exc_info=error)


async def open_audit(database: Database) -> Audit:
    """Return the audit log of an open database, for a command that runs beside the service."""
    audit = Audit(database, clock=SystemClock())
    await audit.open()
    return audit


@asynccontextmanager
async def audited(audit: Audit | None, what: str, job_id: str, *, who: str) -> AsyncIterator[None]:
    """Record the action on a job that the block takes, and its outcome; nothing where there is no audit log."""
    try:
        yield
    except JobError as error:
        if audit is not None:
            await audit.record(what, job_id, who=who, outcome=AuditOutcome.FAILED, reason=type(error).__name__)
        raise
    if audit is not None:
        await audit.record(what, job_id, who=who)


def _update(connection: sqlite3.Connection, rows: Sequence[tuple[str, ...]]) -> None:
    trigger: str = connection.execute(_SELECT_TRIGGER).fetchone()[0]
    connection.execute(_DROP_TRIGGER)
    connection.executemany(_REPLACE_TEXTS, rows)
    connection.execute(trigger)


def _append(tx: Any, rows: Sequence[_Row]) -> list[None]:
    """Write all pending refusals with one statement."""
    connection: sqlite3.Connection = tx.connection
    connection.executemany(_INSERT, rows)
    return [None] * len(rows)


def _entry(row: Sequence[Any]) -> AuditEntry:
    seq, at_ms, who, what, which, outcome, reason = row
    return AuditEntry(seq, at_ms, who, what, which, AuditOutcome(outcome), reason)
