"""Whether what the store does all the time costs the same however much is in it. Run: ``python benchmarks/growth.py``.

One run fills a database with 1 and with 1,000,000 jobs of each kind, does each operation some times and prints the
medians side by side. ``--steps`` counts the steps of SQLite's virtual machine instead, which no busy machine changes.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder holds an http.py, which would stand before the standard library's

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from asyncbg.core.clock import SystemClock
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import Done, Lease, NewJob
from asyncbg.store.base import Settlement
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database

KINDS = ("stored", "old", "queued", "scheduled", "waiting", "batch", "unknown", "elsewhere", "owners")
LIMIT = 1.3
DAY_MS = 86_400_000
_GROUP = 10
_PURGED = 100

_FILL = """
WITH RECURSIVE k (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < :many)
INSERT INTO job (n, id, task, queue, owner, batch, tags, state, priority, durable, at_most_once, stop_on_failure,
                 retries, args, personal, created_at, run_at, place, finished_at)
SELECT :n + i, :kind || i, :task, 'default', CASE :kind WHEN 'owners' THEN 'owner' || i ELSE 'ada' END,
       CASE :kind WHEN 'batch' THEN CASE i WHEN 1 THEN 'batch1' ELSE :batch END WHEN 'waiting' THEN 'other' || i
                  ELSE :kind || i END,
       '["a","b"]', CASE WHEN :kind = 'batch' AND i = 1 THEN 'queued' ELSE :state END, :priority, :durable, 0, 0, 0,
       '{}', '{}', :created_at, :run_at, :place, :finished_at
FROM k
"""
_EVENTS = """
WITH RECURSIVE k (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM k WHERE i < 2)
INSERT INTO event (seq, job, type, at, attempt)
SELECT (SELECT seq FROM log) + (job.n - :n - 1) * 3 + i + 1, job.n, 'job.queued', job.created_at, 0
FROM job, k WHERE job.n > :n
"""
_NUMBERS = "UPDATE log SET n = (SELECT max(n) FROM job), seq = (SELECT coalesce(max(seq), 0) FROM event)"


def fill(connection: sqlite3.Connection, kind: str, many: int, elsewhere: str) -> None:
    """Write so many jobs of a kind, with three events each, straight into the file.

    ``elsewhere`` is the place of a process that lives: its jobs that are not durable are its own.
    """
    now_ms = SystemClock().now_ms()
    # A time in the past, so that a purge may take the jobs that have ended.
    is_old = kind in ("old", "purged")
    is_final = is_old or kind == "stored"
    at_ms = now_ms - 30 * DAY_MS if is_old else now_ms - DAY_MS
    states = {"scheduled": "scheduled", "waiting": "waiting", "batch": "waiting"}
    n = connection.execute("SELECT n FROM log").fetchone()[0]
    values = {
        "many": many, "n": n, "kind": kind, "batch": "batch1",
        "task": "gone" if kind == "unknown" else "work",
        "state": "succeeded" if is_final else states.get(kind, "queued"),
        "priority": {"unknown": 1 << 45, "elsewhere": 1 << 45, "batch": 1 << 42}.get(kind, 0),
        "durable": 0 if kind == "elsewhere" else 1, "place": elsewhere if kind == "elsewhere" else None,
        "created_at": at_ms, "run_at": now_ms + DAY_MS if kind == "scheduled" else at_ms,
        "finished_at": at_ms if is_final else None,
    }  # fmt: skip
    connection.execute(_FILL, values)
    connection.execute(_EVENTS, {"n": n})
    connection.execute(_NUMBERS)


class Operations:
    """What the engine does all the time, each once a round, on a store that holds ``many`` jobs of a kind."""

    def __init__(self, backend: SQLiteBackend, kind: str) -> None:
        self.backend = backend
        self.skip = {"gone"} if kind == "unknown" else set()
        self.ids = IdGenerator(backend.clock)
        self.leases: list[Lease] = []

    def steps(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        """By name, in the order in which they are done."""
        before_ms = self.backend.clock.now_ms() - 7 * DAY_MS
        return {
            "enqueue": self.enqueue,
            "claim": self.claim,
            "renew": lambda: self.backend.renew(lease_s=60),
            "rescue": self.backend.rescue,
            "settle": self.settle,
            "batch end": self.end_one_of_the_batch,
            "purge": lambda: self.backend.purge(before_ms=before_ms, limit=_PURGED),
            "counts": self.count,
        }

    async def enqueue(self) -> None:
        """Ten jobs that come before all others."""
        await self.backend.enqueue([self._job() for _ in range(_GROUP)])

    def _job(self) -> NewJob:
        job_id, now_ms = self.ids.new(), self.backend.clock.now_ms()
        return NewJob(
            id=job_id, task="work", queue="default", owner="ada", batch=job_id, tags="[]", state="queued",
            priority=1 << 44, durable=1, at_most_once=0, stop_on_failure=0, retries=0, args="{}", personal="{}",
            created_at_ms=now_ms, run_at_ms=now_ms,
        )  # fmt: skip

    async def claim(self) -> None:
        """The ten."""
        claimed = await self.backend.claim(_GROUP, lease_s=60, skip=self.skip)
        self.leases = list(claimed.leases)
        assert len(self.leases) == _GROUP

    async def settle(self) -> None:
        """All of them succeed."""
        assert all(await self.backend.settle([Settlement(lease, Done("null")) for lease in self.leases]))

    async def end_one_of_the_batch(self) -> None:
        """The first of the batch that is ready is claimed and ends; the next one is released."""
        (lease,) = (await self.backend.claim(1, lease_s=60, skip=self.skip)).leases
        assert lease.batch == "batch1"
        assert all(await self.backend.settle([Settlement(lease, Done("null"))]))

    async def count(self) -> None:
        """What a second of the engine and a scrape of the metrics ask."""
        await self.backend.counts()
        await self.backend.waiting()
        await self.backend.waiting_of(["ada"], 1)  # of an owner it counts up to the bound and no further
        await self.backend.position()


class Stopwatch:
    """Microseconds."""

    def attach(self, connection: sqlite3.Connection) -> None:
        """Nothing to do."""

    def read(self) -> float:
        """Now."""
        return time.perf_counter() * 1e6


class StepCounter:
    """Steps of SQLite's virtual machine, in every connection of a store."""

    def __init__(self) -> None:
        self.steps = 0

    def attach(self, connection: sqlite3.Connection) -> None:
        """Count what this connection does from now on."""
        connection.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.steps += 1
        return 0

    def read(self) -> float:
        """So many by now."""
        return float(self.steps)


async def measure(kind: str, many: int, rounds: int, meter: Stopwatch | StepCounter) -> dict[str, float]:
    """The median cost of each operation with ``many`` jobs of a kind stored."""
    with tempfile.TemporaryDirectory() as folder:
        backend = SQLiteBackend(Database(str(Path(folder) / "jobs.db"), readers=1))
        neighbour = SQLiteBackend(Database(str(Path(folder) / "jobs.db"), readers=1))
        await backend.open()
        await neighbour.open()
        try:
            sizes = {"purged": _PURGED * rounds, "batch": rounds + 2}
            for each, size in {**sizes, kind: max(many, sizes.get(kind, 0))}.items():
                await backend.database.write(partial(fill, kind=each, many=size, elsewhere=neighbour.place))
            with closing(sqlite3.connect(backend.database.path)) as connection:  # the fill itself is not measured
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for door in (backend.database.write, backend.database.read):
                await door(meter.attach)
            steps = Operations(backend, kind).steps()
            costs: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, do in steps.items():
                    start = meter.read()
                    await do()
                    costs[name].append(meter.read() - start)
            return {name: statistics.median(found) for name, found in costs.items()}
        finally:
            await neighbour.close()
            await backend.close()


def main() -> None:
    """Print a table; exit code 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--only", help="kinds, with commas between")
    given = parser.parse_args()
    grown = 0
    for kind in given.only.split(",") if given.only else KINDS:
        few, much = (
            asyncio.run(measure(kind, many, given.rounds, StepCounter() if given.steps else Stopwatch()))
            for many in (1, given.many)
        )
        for name, cost in few.items():
            ratio = much[name] / cost
            grown += ratio > LIMIT
            print(
                f"{kind:<10}{name:<10}{cost:>10,.0f}{much[name]:>10,.0f}{ratio:>7.2f}{' !' * (ratio > LIMIT)}",
                flush=True,
            )
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
