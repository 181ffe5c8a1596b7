"""Housekeeping of a database: purging old jobs, following jumps of the wall clock, probing that a job would run."""

import json
from typing import NamedTuple

from asyncbg.core.clock import Clock
from asyncbg.core.job import NewJob
from asyncbg.store.sqlite.attempt import AttemptLanes, ClaimRequest
from asyncbg.store.sqlite.database import Database, Transaction
from asyncbg.store.sqlite.enqueue import EnqueueLanes
from asyncbg.store.sqlite.event_log import EventLog
from asyncbg.store.sqlite.statement import SQL, read_json

_JOBS, _EVENTS = 100, 500
"""Rows of one slice of a purge: a few milliseconds of the writer."""
_JUMP_MS = 1_000


class PurgeSlice(NamedTuple):
    """Some jobs to delete, where they finished before ``before_ms``."""

    before_ms: int
    ns: list[int]


class Purged(NamedTuple):
    """How many jobs were deleted, and whether no event of a deleted job is left."""

    jobs: int
    is_clean: bool


async def purge(database: Database, *, before_ms: int, limit: int) -> int:
    """Delete up to ``limit`` final jobs finished before ``before_ms``, and their events, in slices of rows."""
    values = {"before_ms": before_ms, "limit": limit}
    found: list[int] = await database.read(lambda connection: read_json(connection, "find_purgeable", values))
    purged, is_done = 0, False
    while not is_done:
        ns, found = found[:_JOBS], found[_JOBS:]
        done = await database.submit(_purge, PurgeSlice(before_ms, ns))
        purged += done.jobs
        is_done = done.is_clean and not found
    return purged


def _purge(tx: Transaction, items: list[PurgeSlice]) -> list[Purged]:
    return [_purge_slice(tx, *item) for item in items]


def _purge_slice(tx: Transaction, before_ms: int, found: list[int]) -> Purged:
    ns = read_json(tx.connection, "still_purgeable", {"ns": json.dumps(found), "before_ms": before_ms})
    if ns:
        for name in ("mark_purged", "delete_jobs", "delete_failed", "remember_purged"):
            tx.connection.execute(SQL[name], {"ns": json.dumps(ns)})
    deleted = tx.connection.execute(SQL["delete_events"], {"limit": _EVENTS}).rowcount
    if deleted:
        tx.connection.execute(SQL["forget_purged"])
    return Purged(len(ns), deleted < _EVENTS)


class WallClockLane:
    """Moves delays and retries, which are wall-clock times, along with jumps of the wall clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.offset_ms = 0
        """Wall-clock time less monotonic time, when last measured."""

    def measure(self) -> None:
        """Measure the offset now."""
        self.offset_ms = self._current_offset_ms()

    @property
    def has_jumped(self) -> bool:
        """Whether the wall clock was set since the last measurement."""
        return abs(self._current_offset_ms() - self.offset_ms) >= _JUMP_MS

    def _current_offset_ms(self) -> int:
        return self._clock.now_ms() - self._clock.monotonic_ms()

    def follow(self, tx: Transaction, items: list[None]) -> list[int]:
        """Move them once for all processes: the others find the jump recorded in the row of the log."""
        self.measure()
        jump_ms = self.offset_ms - tx.connection.execute(SQL["read_wall_offset"]).fetchone()[0]
        if abs(jump_ms) >= _JUMP_MS:
            tx.connection.execute(SQL["shift_delays"], {"jump_ms": jump_ms})
            tx.connection.execute(SQL["write_wall_offset"], {"wall_offset": self.offset_ms})
        return [jump_ms] * len(items)


class ProbeLane:
    """The readiness probe: stores and claims a job through the lanes of real jobs, then rolls it back."""

    def __init__(self, clock: Clock, enqueues: EnqueueLanes, attempts: AttemptLanes) -> None:
        self._clock = clock
        self._enqueues = enqueues
        self._attempts = attempts

    def probe(self, tx: Transaction, items: list[None]) -> list[None]:
        """Work within a savepoint that is rolled back, with the numbers and events it has added."""
        log = EventLog.of(tx)
        seq, n, events = log.seq, log.n, len(tx.events)
        tx.connection.execute("SAVEPOINT probe")
        now_ms = self._clock.now_ms()
        job = NewJob(
            id="probe", task="probe", queue="probe", owner="", batch="probe", tags="[]", state="queued",
            priority=2**40, durable=1, at_most_once=0, stop_on_failure=0, retries=0, args="{}", personal="{}",
            created_at_ms=now_ms, run_at_ms=now_ms,
        )  # fmt: skip
        self._enqueues.insert(tx, [job])
        self._attempts.claim_one(tx, ClaimRequest(1, 1.0, ()))
        tx.connection.execute("ROLLBACK TO probe")
        tx.connection.execute("RELEASE probe")
        log.seq, log.n = seq, n
        del tx.events[events:]
        return [None] * len(items)
