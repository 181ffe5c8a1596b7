"""Keep the log of what users did, and count it up: the log is the truth, every number is computed from it."""

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass

from asyncbg.clock import Clock
from asyncbg.database import Database
from asyncbg.job import ANONYMOUS
from asyncbg.services.page import Page, before, page_of

_SCHEMA = """
CREATE TABLE activity (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id  TEXT NOT NULL UNIQUE,
    user_id INTEGER NOT NULL,
    action  TEXT NOT NULL,
    at_ms   INTEGER NOT NULL CHECK (at_ms >= 0)
);
CREATE INDEX activity_by_user ON activity (user_id, seq);
CREATE INDEX activity_to_count ON activity (user_id, action, at_ms);
CREATE TABLE user_statistics (
    user_id       INTEGER PRIMARY KEY,
    total         INTEGER NOT NULL,
    by_action     TEXT NOT NULL CHECK (json_valid(by_action)),
    first_seen_ms INTEGER,
    last_seen_ms  INTEGER,
    by_day        TEXT NOT NULL CHECK (json_valid(by_day)),
    computed_ms   INTEGER NOT NULL
);
"""

# A user's number is another user for every owner. The statistics are computed anew with the next action.
_OWNERS = """
ALTER TABLE activity ADD COLUMN owner TEXT NOT NULL DEFAULT 'anonymous';
CREATE INDEX activity_of_owner ON activity (owner, user_id, seq);
CREATE INDEX activity_of_owner_to_count ON activity (owner, user_id, action, at_ms);
DROP TABLE user_statistics;
CREATE TABLE user_statistics (
    owner         TEXT NOT NULL,
    user_id       INTEGER NOT NULL,
    total         INTEGER NOT NULL,
    by_action     TEXT NOT NULL CHECK (json_valid(by_action)),
    first_seen_ms INTEGER,
    last_seen_ms  INTEGER,
    by_day        TEXT NOT NULL CHECK (json_valid(by_day)),
    computed_ms   INTEGER NOT NULL,
    PRIMARY KEY (owner, user_id)
) WITHOUT ROWID;
"""

# A job that runs again finds its row there.
_RECORD = """
INSERT INTO activity (job_id, owner, user_id, action, at_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT (job_id) DO NOTHING
"""

_LOG = """
SELECT json_group_array(json_array(seq, user_id, action, at_ms)) FROM (
    SELECT seq, user_id, action, at_ms FROM activity WHERE user_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?
)
"""

# One statement, so that all numbers are of one moment.
_COUNT = """
SELECT json_group_array(json_array(action, day, count, first_ms, last_ms)) FROM (
    SELECT action, date(at_ms / 1000, 'unixepoch') AS day, count(*) AS count, min(at_ms) AS first_ms,
           max(at_ms) AS last_ms
    FROM activity WHERE user_id = ? GROUP BY action, day
)
"""

_STORE = "INSERT OR REPLACE INTO user_statistics VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class ActivityItem:
    """One thing a user did. ``id`` grows with each row of the log."""

    id: int
    user_id: int
    action: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a user's log adds up to. ``by_day`` is keyed by UTC dates, ``2026-11-22``."""

    total: int
    by_action: dict[str, int]
    first_seen_ms: int | None
    last_seen_ms: int | None
    by_day: dict[str, int]


class Activity:
    """The activity log of all users and the statistics computed from it; ``owner`` None reads those of all owners."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """Keep the log in ``database``, which must be open before ``open`` is called."""
        self._database = database
        self._clock = clock

    async def open(self) -> None:
        """Create or upgrade the tables."""
        await self._database.migrate("activity", [_SCHEMA, _OWNERS])

    async def record(self, *, user_id: int, action: str, job_id: str, owner: str = ANONYMOUS) -> bool:
        """Add one row; False when ``job_id`` has added its row before."""
        row = (job_id, owner, user_id, action, self._clock.now_ms())
        return await self._database.write(lambda connection: connection.execute(_RECORD, row).rowcount == 1)

    async def log(
        self, user_id: int, *, owner: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[ActivityItem]:
        """A page of the user's log, newest first. Raises BadCursorError."""
        statement, whose = _of(owner, _LOG)
        wanted = (user_id, *whose, before(cursor), limit + 1)
        rows = await self._database.read(lambda connection: connection.execute(statement, wanted).fetchone()[0])
        return page_of([(row[0], ActivityItem(*row)) for row in json.loads(rows)], limit)

    async def statistics(self, user_id: int, *, owner: str | None = None) -> Statistics:
        """What the log says now, every committed row counted."""
        return await self._database.read(lambda connection: _count(connection, user_id, owner))

    async def refresh_statistics(self, user_id: int, *, owner: str = ANONYMOUS) -> Statistics:
        """Compute the statistics and store them as the user's row of ``user_statistics``, in one transaction."""
        now_ms = self._clock.now_ms()

        def refresh(connection: sqlite3.Connection) -> Statistics:
            counted = _count(connection, user_id, owner)
            by_action, by_day = json.dumps(counted.by_action), json.dumps(counted.by_day)
            seen = (counted.first_seen_ms, counted.last_seen_ms)
            connection.execute(_STORE, (owner, user_id, counted.total, by_action, *seen, by_day, now_ms))
            return counted

        return await self._database.write(refresh)


def _of(owner: str | None, statement: str) -> tuple[str, tuple[str, ...]]:
    """A statement about one user, for one owner or for all, and the values for the owner."""
    if owner is None:
        return statement, ()
    return statement.replace("user_id = ?", "user_id = ? AND owner = ?"), (owner,)


def _count(connection: sqlite3.Connection, user_id: int, owner: str | None) -> Statistics:
    statement, whose = _of(owner, _COUNT)
    groups = json.loads(connection.execute(statement, (user_id, *whose)).fetchone()[0])
    by_action: Counter[str] = Counter()
    by_day: Counter[str] = Counter()
    for action, day, count, _, _ in groups:
        by_action[action] += count
        by_day[day] += count
    return Statistics(
        total=by_action.total(),
        by_action=dict(sorted(by_action.items())),
        first_seen_ms=min((group[3] for group in groups), default=None),
        last_seen_ms=max((group[4] for group in groups), default=None),
        by_day=dict(sorted(by_day.items())),
    )
