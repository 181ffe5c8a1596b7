"""The activity log and its statistics, which triggers update in the transaction that writes a row.

Reading the statistics of a user takes constant time, however long the log is.
"""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from asyncbg.core.clock import Clock
from asyncbg.core.job import ANONYMOUS
from asyncbg.core.keyset_page import KeysetPage, build_page, parse_cursor
from asyncbg.store.sqlite.database import Database, Guard, unguarded

MAX_ACTIONS = 100
"""Number of actions that statistics list, most frequent first; the others are summed."""
MAX_DAYS = 366
"""Number of days that statistics list, the latest ones; earlier days are summed."""

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

# A user number is scoped to its owner. The statistics are recomputed with the next action.
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

# The counts of a user: one row in total, one for each action and one for each UTC day. Triggers keep them equal to the
# log for every insert, update and delete.
_ADD = """
    INSERT INTO activity_total VALUES (new.user_id, new.owner, 1, new.at_ms, new.at_ms)
    ON CONFLICT DO UPDATE SET count = count + 1, first_ms = min(first_ms, new.at_ms), last_ms = max(last_ms, new.at_ms);
    INSERT INTO activity_by_action VALUES (new.user_id, new.owner, new.action, 1)
    ON CONFLICT DO UPDATE SET count = count + 1;
    INSERT INTO activity_by_day VALUES (new.user_id, new.owner, date(new.at_ms / 1000, 'unixepoch'), 1)
    ON CONFLICT DO UPDATE SET count = count + 1;
"""
_SUBTRACT = """
    UPDATE activity_total SET count = count - 1 WHERE user_id = old.user_id AND owner = old.owner;
    DELETE FROM activity_total WHERE user_id = old.user_id AND owner = old.owner AND count = 0;
    UPDATE activity_by_action SET count = count - 1
    WHERE user_id = old.user_id AND owner = old.owner AND action = old.action;
    DELETE FROM activity_by_action
    WHERE user_id = old.user_id AND owner = old.owner AND action = old.action AND count = 0;
    UPDATE activity_by_day SET count = count - 1
    WHERE user_id = old.user_id AND owner = old.owner AND day = date(old.at_ms / 1000, 'unixepoch');
    DELETE FROM activity_by_day
    WHERE user_id = old.user_id AND owner = old.owner AND day = date(old.at_ms / 1000, 'unixepoch') AND count = 0;
"""
_COUNTERS = f"""
CREATE TABLE activity_total (
    user_id  INTEGER NOT NULL,
    owner    TEXT NOT NULL,
    count    INTEGER NOT NULL,
    first_ms INTEGER NOT NULL,
    last_ms  INTEGER NOT NULL,
    PRIMARY KEY (user_id, owner)
) WITHOUT ROWID;
CREATE TABLE activity_by_action (
    user_id INTEGER NOT NULL,
    owner   TEXT NOT NULL,
    action  TEXT NOT NULL,
    count   INTEGER NOT NULL,
    PRIMARY KEY (user_id, owner, action)
) WITHOUT ROWID;
CREATE INDEX activity_by_count ON activity_by_action (user_id, owner, count DESC, action);
CREATE TABLE activity_by_day (
    user_id INTEGER NOT NULL,
    owner   TEXT NOT NULL,
    day     TEXT NOT NULL,
    count   INTEGER NOT NULL,
    PRIMARY KEY (user_id, owner, day)
) WITHOUT ROWID;
INSERT INTO activity_total
SELECT user_id, owner, count(*), min(at_ms), max(at_ms) FROM activity GROUP BY user_id, owner;
INSERT INTO activity_by_action SELECT user_id, owner, action, count(*) FROM activity GROUP BY user_id, owner, action;
INSERT INTO activity_by_day
SELECT user_id, owner, date(at_ms / 1000, 'unixepoch') AS day, count(*) FROM activity GROUP BY user_id, owner, day;
DROP INDEX activity_to_count;
DROP INDEX activity_of_owner_to_count;
CREATE TRIGGER activity_counted AFTER INSERT ON activity BEGIN {_ADD} END;
CREATE TRIGGER activity_recounted AFTER UPDATE ON activity BEGIN {_SUBTRACT}{_ADD} END;
CREATE TRIGGER activity_uncounted AFTER DELETE ON activity BEGIN {_SUBTRACT} END;
"""  # noqa: S608 - our own statements  # nosec B608

# A repeated attempt of a job adds no second row.
_RECORD = """
INSERT INTO activity (job_id, owner, user_id, action, at_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT (job_id) DO NOTHING
"""
MIGRATIONS = (_SCHEMA, _OWNERS, _COUNTERS)

_LOG = """
SELECT json_group_array(json_array(seq, user_id, action, at_ms)) FROM (
    SELECT seq, user_id, action, at_ms FROM activity WHERE user_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?
)
"""

_OWNERS_OF = "SELECT owner FROM activity_total WHERE user_id = ?"

_TOTAL = "SELECT sum(count), min(first_ms), max(last_ms) FROM activity_total WHERE user_id = ?"

_BY_ACTION = """
SELECT action, count FROM activity_by_action WHERE user_id = ? ORDER BY count DESC, action LIMIT ?
"""

_BY_ACTION_OF_ALL = """
SELECT action, sum(count) AS count FROM activity_by_action WHERE user_id = ?
GROUP BY action ORDER BY count DESC, action LIMIT ?
"""

_BY_DAY = """
SELECT day, sum(count) FROM activity_by_day WHERE user_id = ? GROUP BY day ORDER BY day DESC LIMIT ?
"""

_STORE = "INSERT OR REPLACE INTO user_statistics VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class ActivityItem:
    """One row of the log. ``id`` increases with each row."""

    id: int
    user_id: int
    action: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of a user's log.

    ``by_action`` holds the most frequent actions, ``by_day`` the latest UTC dates with actions, such as ``2026-11-22``.
    """

    total: int
    by_action: dict[str, int]
    first_seen_ms: int | None
    last_seen_ms: int | None
    by_day: dict[str, int]

    @property
    def by_action_rest(self) -> int:
        """Return the count of actions that ``by_action`` does not list."""
        return self.total - sum(self.by_action.values())

    @property
    def by_day_rest(self) -> int:
        """Return the count of actions on days before those in ``by_day``."""
        return self.total - sum(self.by_day.values())


class Activity:
    """The activity log of all users and its statistics; ``owner`` None reads the rows of all owners."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """Store the log in ``database``, which must be open before ``open`` is called."""
        self._database = database
        self._clock = clock

    async def open(self) -> None:
        """Create or migrate the tables."""
        await self._database.migrate("activity", MIGRATIONS)

    async def record(
        self, *, user_id: int, action: str, job_id: str, owner: str = ANONYMOUS, guard: Guard = unguarded
    ) -> bool:
        """Add one row, unless ``guard`` raises. Return False if ``job_id`` has added its row before."""
        row = (job_id, owner, user_id, action, self._clock.now_ms())

        def write(connection: sqlite3.Connection) -> bool:
            guard(connection)
            return connection.execute(_RECORD, row).rowcount == 1

        return await self._database.write(write)

    async def log(
        self, user_id: int, *, owner: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> KeysetPage[ActivityItem]:
        """Return a page of the user's log, newest first. Raises BadCursorError."""
        statement, whose = _of(owner, _LOG)
        wanted = (user_id, *whose, parse_cursor(cursor), limit + 1)
        rows = await self._database.read(lambda connection: connection.execute(statement, wanted).fetchone()[0])
        return build_page([(row[0], ActivityItem(*row)) for row in json.loads(rows)], limit)

    async def statistics(self, user_id: int, *, owner: str | None = None) -> Statistics:
        """Return the current statistics of all committed rows."""
        return await self._database.read(lambda connection: _statistics(connection, user_id, owner))

    async def refresh_statistics(self, user_id: int, *, owner: str = ANONYMOUS) -> Statistics:
        """Compute the statistics and store them in ``user_statistics``, in one transaction."""
        now_ms = self._clock.now_ms()

        def refresh(connection: sqlite3.Connection) -> Statistics:
            counted = _statistics(connection, user_id, owner)
            by_action, by_day = json.dumps(counted.by_action), json.dumps(counted.by_day)
            seen = (counted.first_seen_ms, counted.last_seen_ms)
            connection.execute(_STORE, (owner, user_id, counted.total, by_action, *seen, by_day, now_ms))
            return counted

        return await self._database.write(refresh)


def _of(owner: str | None, statement: str) -> tuple[str, tuple[str, ...]]:
    """Return the statement restricted to ``owner`` unless it is None, and the parameters for the owner."""
    if owner is None:
        return statement, ()
    return statement.replace("user_id = ?", "user_id = ? AND owner = ?"), (owner,)


def _statistics(connection: sqlite3.Connection, user_id: int, owner: str | None) -> Statistics:
    by_action = _BY_ACTION
    if owner is None:
        owners = connection.execute(_OWNERS_OF, (user_id,)).fetchall()
        if len(owners) == 1:
            (owner,) = owners[0]
        else:
            by_action = _BY_ACTION_OF_ALL

    def read(statement: str, *values: int) -> list[tuple[Any, ...]]:
        statement, whose = _of(owner, statement)
        return connection.execute(statement, (user_id, *whose, *values)).fetchall()

    [(total, first_ms, last_ms)] = read(_TOTAL)
    actions, days = read(by_action, MAX_ACTIONS), read(_BY_DAY, MAX_DAYS)
    return Statistics(
        total=total or 0,
        by_action=dict(actions),
        first_seen_ms=first_ms,
        last_seen_ms=last_ms,
        by_day=dict(reversed(days)),
    )
