"""The audit log: who did what to which thing, when, and what came of it. Rows are added and never changed.

Nothing personal goes in: keys are named by their names, jobs by their ids, and an owner that a host application names
by an address is written as a pseudonym. Should a row hold an address all the same, an erasure alone may put a pseudonym
in its place: who, what and when stay, and so does the erasure's own row.
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
from asyncbg.core.keyset_page import Page, build_page, parse_cursor
from asyncbg.errors import JobError, OutageError
from asyncbg.privacy import redact
from asyncbg.store.sqlite.database import Database

logger = logging.getLogger("asyncbg")

KEPT_DAYS: Final = 400
"""Rows this old may be deleted, and are: a year and a bit to look back, and no log that grows for ever."""
REFUSALS_PER_MINUTE: Final = 60
"""Refusals that are written one by one; more of a minute are counted in one row, so that nobody can fill the disk."""

COMMAND_LINE: Final = "command line"
"""Who did what was done by a command on this machine."""

_Row = tuple[int, str, str, str, str, str]
_MINUTE_MS = 60_000
_LONGEST = 200

# The schema itself forbids what must not happen, whoever opens the file: no change, and no deletion of what is younger
# than KEPT_DAYS, by the database's own clock.
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

_ALLOW_CHANGE = "DROP TRIGGER audit_is_not_changed"
_FORBID_CHANGE = "SELECT sql FROM sqlite_master WHERE name = 'audit_is_not_changed'"
_TEXTS = "SELECT seq, who, which, reason FROM audit"
_HIDE = "UPDATE audit SET who = ?, which = ?, reason = ? WHERE seq = ?"

_INSERT = "INSERT INTO audit (at_ms, who, what, which, outcome, reason) VALUES (?, ?, ?, ?, ?, ?)"
_EXPIRE = """
DELETE FROM audit WHERE at_ms <= ? AND at_ms <= (strftime('%s', 'now') - ? * 86400) * 1000
"""
_READ = """
SELECT json_group_array(json_array(seq, at_ms, who, what, which, outcome, reason)) FROM (
    SELECT * FROM audit WHERE seq < :before AND (:what IS NULL OR what = :what) AND (:who IS NULL OR who = :who)
    ORDER BY seq DESC LIMIT :limit)
"""


class Outcome(StrEnum):
    """What came of it: it was done, it could not be done, or it was not allowed."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row: ``who`` is an owner (``?`` where nobody knows), ``what`` a verb such as ``key.revoke``."""

    seq: int
    at_ms: int
    who: str
    what: str
    which: str
    outcome: Outcome
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON shows it."""
        return {"at": rfc3339(self.at_ms), **{name: value for name, value in asdict(self).items() if name != "at_ms"}}


class Audit:
    """The audit log of one database."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """Keep it in ``database``, which must be open before ``open`` is called."""
        self._database = database
        self._clock = clock
        self._minute = 0
        self._refused = 0
        self._late: set[asyncio.Future[Any]] = set()

    async def open(self) -> None:
        """Create or upgrade the table, and let go of what is older than it has to be."""
        await self._database.migrate("audit", MIGRATIONS)
        expired = (self._clock.now_ms() - KEPT_DAYS * 86_400_000, KEPT_DAYS)
        await self._database.write(lambda connection: connection.execute(_EXPIRE, expired).rowcount)

    async def record(
        self, what: str, which: str = "", *, who: str, outcome: Outcome = Outcome.DONE, reason: str = ""
    ) -> None:
        """Add a row; it is on disk when this returns."""
        row = self._row(what, which, who, outcome, reason)
        await self._database.write(lambda connection: connection.execute(_INSERT, row).rowcount)

    def refuse(self, what: str, which: str = "", *, who: str, reason: str) -> None:
        """Add the row of a refusal with one of the next commits, without waiting; beyond a bound only count it."""
        minute = self._clock.now_ms() // _MINUTE_MS
        left, self._refused = self._refused, self._refused + 1
        if minute != self._minute:
            self._minute, self._refused = minute, 1
            if left > REFUSALS_PER_MINUTE:
                more = f"{left - REFUSALS_PER_MINUTE} more in that minute"
                self._submit(self._row("refusals", "", "?", Outcome.REFUSED, more))
        if self._refused <= REFUSALS_PER_MINUTE:
            self._submit(self._row(what, which, who, Outcome.REFUSED, reason))

    async def read(
        self, *, what: str | None = None, who: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[AuditEntry]:
        """A page of rows, newest first. Raises BadCursorError."""
        wanted = {"before": parse_cursor(cursor), "what": what, "who": who, "limit": limit + 1}
        rows = await self._database.read(lambda connection: connection.execute(_READ, wanted).fetchone()[0])
        return build_page([(row[0], _entry(row)) for row in json.loads(rows)], limit)

    async def forget(self, hidden: Callable[[str], str]) -> int:
        """Put what ``hidden`` makes of them in the place of the texts of all rows; returns how many rows it changed.

        Nothing but the erasure of a person may call this. The log takes no other change: one transaction lifts its
        guard and sets it again.
        """
        rows = await self._database.read(lambda connection: connection.execute(_TEXTS).fetchall())
        changed = [(*shown, seq) for seq, *texts in rows if (shown := [hidden(text) for text in texts]) != texts]
        if changed:
            await self._database.write(lambda connection: _change(connection, changed))
        return len(changed)

    def _row(self, what: str, which: str, who: str, outcome: Outcome, reason: str) -> _Row:
        shown = [redact(text)[:_LONGEST] for text in (which, reason)]
        return (self._clock.now_ms(), redact(who)[:_LONGEST], what, shown[0], outcome.value, shown[1])

    def _submit(self, row: _Row) -> None:
        written = self._database.submit(_append, row)
        self._late.add(written)
        written.add_done_callback(self._written)

    def _written(self, future: "asyncio.Future[Any]") -> None:
        self._late.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, OutageError):  # of an outage the database itself tells
            logger.error("refusals are not in the audit log", exc_info=error)


async def open_audit(database: Database) -> Audit:
    """The log of a database that is open, for a command beside the service."""
    audit = Audit(database, clock=SystemClock())
    await audit.open()
    return audit


@asynccontextmanager
async def audited(audit: Audit | None, what: str, job_id: str, *, who: str) -> AsyncIterator[None]:
    """Write down what the block does to a job, and what came of it; nothing where there is no log."""
    try:
        yield
    except JobError as error:
        if audit is not None:
            await audit.record(what, job_id, who=who, outcome=Outcome.FAILED, reason=type(error).__name__)
        raise
    if audit is not None:
        await audit.record(what, job_id, who=who)


def _change(connection: sqlite3.Connection, rows: Sequence[tuple[str, ...]]) -> None:
    guard: str = connection.execute(_FORBID_CHANGE).fetchone()[0]
    connection.execute(_ALLOW_CHANGE)
    connection.executemany(_HIDE, rows)
    connection.execute(guard)


def _append(tx: Any, rows: Sequence[_Row]) -> list[None]:
    """The lane of refusals: all that are pending in one statement."""
    connection: sqlite3.Connection = tx.connection
    connection.executemany(_INSERT, rows)
    return [None] * len(rows)


def _entry(row: Sequence[Any]) -> AuditEntry:
    seq, at_ms, who, what, which, outcome, reason = row
    return AuditEntry(seq, at_ms, who, what, which, Outcome(outcome), reason)
