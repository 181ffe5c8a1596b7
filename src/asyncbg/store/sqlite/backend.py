"""The store in a SQLite file: each method is one lane of the group commit, or one read."""

import asyncio
import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiosqlite

from asyncbg.core.clock import Clock, SystemClock
from asyncbg.core.event import Event, EventFilter
from asyncbg.core.job import Attempt, JobRecord, JobState, Lease, NewJob, Released
from asyncbg.errors import IdempotencyError, LeaseLostError, OutageError, OverloadedError
from asyncbg.privacy.encryption import Encryption
from asyncbg.store.base import Claimed, Enqueued, JobQuery, LogPosition, Settlement, Tail, TaskCount
from asyncbg.store.encrypted import decrypt_record, digest_keys, load_digest_key
from asyncbg.store.sqlite.attempt import AttemptLanes, ClaimRequest, ProgressReport, PublishedEvent
from asyncbg.store.sqlite.attempt_history import find_attempts
from asyncbg.store.sqlite.caller_transaction import join
from asyncbg.store.sqlite.database import Database, Guard, Transaction
from asyncbg.store.sqlite.database_file import MEMORY
from asyncbg.store.sqlite.enqueue import DueSlot, EnqueueLanes, remember_slots
from asyncbg.store.sqlite.event_log import LogRow
from asyncbg.store.sqlite.housekeeping import ProbeLane, WallClockLane, purge
from asyncbg.store.sqlite.process_slot import CounterFiles, ProcessSlot
from asyncbg.store.sqlite.read import (
    conditions,
    count_open,
    count_waiting,
    find_events,
    find_record,
    find_records,
    lease_holds,
    read_tail,
    require_ended,
)
from asyncbg.store.sqlite.rescue import SLICE, QuarantineLane, RescueLane
from asyncbg.store.sqlite.statement import SQL, load_script, read_json
from asyncbg.store.sqlite.transition import CancelRequest, ControlLanes

MIGRATIONS = tuple(load_script(f"sqlite_{version:04}.sql") for version in (1, 2, 3, 4, 5, 6, 7))

_MOST_WAITING = 10_000
_STALL_S = 0.5


class SQLiteBackend:
    """Jobs and events in one SQLite database, shared by any number of processes of one machine."""

    def __init__(self, database: Database, *, clock: Clock | None = None, encryption: Encryption | None = None) -> None:
        """Use ``database``, which is opened and closed with the backend; ``encryption`` encrypts what it stores."""
        self.database = database
        self.clock = clock or SystemClock()
        self.encryption = encryption or Encryption()
        self.epoch = ""
        self.on_commit: Callable[[Sequence[Event]], None] = lambda events: None
        self.on_progress: Callable[[Sequence[Event]], None] = lambda events: None
        self._slot = ProcessSlot(None if database.path == MEMORY else Path(database.path))
        self._counters = CounterFiles(None if database.path == MEMORY else Path(database.path), self._slot)
        database.after_commit = self._after_commit
        self._enqueues = EnqueueLanes(self.encryption)
        self._attempts = AttemptLanes(self.clock, self.encryption, self._slot)
        self._control = ControlLanes(self.clock)
        self._rescues = RescueLane(self.clock, self._slot)
        self._quarantine = QuarantineLane(self.clock)
        self._wall_clock = WallClockLane(self.clock)
        self._probes = ProbeLane(self.clock, self._enqueues, self._attempts)

    @property
    def place(self) -> str:
        """The name of this process's slot at the database."""
        return self._slot.name

    async def open(self) -> None:
        """Open the database, migrate its tables, acquire a process slot and rescue the jobs its last process left."""
        await self.database.open()
        try:
            await self.database.migrate("engine", MIGRATIONS)
            self._wall_clock.measure()
            self.epoch = await self.database.write(self._start_log)
            await load_digest_key(self.database, self.encryption)
            self._slot.acquire()
            await self._rescue([self.place])
        except BaseException:
            await self.close()
            raise

    async def attach(self) -> None:
        """Open the store beside the processes that run its jobs: to read, submit, cancel and retry, never to run.

        Acquires no slot and rescues no job; writes only where the tables are not up to date.
        """
        await self.database.open()
        try:
            epoch = await self.database.read(_current_epoch)
            if epoch is None:
                await self.database.migrate("engine", MIGRATIONS)
                self._wall_clock.measure()
                epoch = await self.database.write(self._start_log)
            self.epoch = epoch
            await load_digest_key(self.database, self.encryption)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Commit what is pending, close the connections, release the slot."""
        await self.database.close()
        self._slot.release()

    def _start_log(self, connection: sqlite3.Connection) -> str:
        connection.execute(SQL["start_log"], {"epoch": secrets.token_hex(4), "wall_offset": self._wall_clock.offset_ms})
        return str(connection.execute(SQL["read_log"]).fetchone()[0])

    def _after_commit(self, events: list[Event]) -> None:
        if progress := [event for event in events if not event.seq]:
            self.on_progress(progress)
            events = [event for event in events if event.seq]
        if events:
            self.on_commit(events)

    # Accepting

    async def enqueue(self, jobs: Sequence[NewJob]) -> Enqueued:
        """Store one batch; returns when it is on disk. Raises OverloadedError while a stalled commit has a backlog."""
        if self.database.waiting >= _MOST_WAITING and self.database.stalled_s > _STALL_S:
            raise OverloadedError("too many writes wait for the database; retry later", retry_after_s=1.0)
        digested = [digest_keys(job, self.encryption) for job in jobs] if self.encryption.is_on else jobs
        try:
            return await self.database.submit(self._enqueues.enqueue, digested)
        except IdempotencyError as error:
            given = {new.idempotency_key: job.idempotency_key for new, job in zip(digested, jobs, strict=True)}
            raise IdempotencyError(given.get(error.key) or error.key) from None

    async def enqueue_within(self, connection: aiosqlite.Connection, job: NewJob) -> JobRecord:
        """Store a job in the open transaction of the caller's own connection; its commit is found in the event log."""

        def enqueue(tx: Transaction) -> JobRecord | None:
            (result,) = self._enqueues.enqueue(tx, [[digest_keys(job, self.encryption)]])
            if isinstance(result, Exception):
                raise result
            return find_record(tx.connection, "id = ?", result.ids[0])

        return decrypt_record(cast(JobRecord, await join(connection, self.database.path, enqueue)), self.encryption)

    # Scheduling

    async def slots(self, names: Collection[str], *, since_ms: int, latest_ms: int) -> Mapping[str, int]:
        """Return the last slot fired of each schedule; a new one, or one beyond ``latest_ms``, becomes ``since_ms``."""
        return await self.database.write(
            lambda connection: remember_slots(connection, names, since_ms=since_ms, latest_ms=latest_ms)
        )

    async def fire(self, schedule: str, slot_ms: int, job: NewJob) -> bool:
        """Store the job of a slot and advance the schedule, unless the slot was fired before."""
        item = DueSlot(schedule, slot_ms, digest_keys(job, self.encryption))
        return await self.database.submit(self._enqueues.fire, item)

    # Running

    async def claim(self, limit: int, *, lease_s: float, skip: Collection[str] = ()) -> Claimed:
        """Promote jobs that are due, then claim up to ``limit`` queued jobs."""
        claiming = self.database.submit(self._attempts.claim, ClaimRequest(limit, lease_s, skip))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(self._release_claimed)
            raise

    def _release_claimed(self, claiming: "asyncio.Future[Claimed]") -> None:
        """Queue the claimed jobs again: their caller was cancelled, so none would run them."""
        if claiming.cancelled() or claiming.exception() is not None:
            return
        released = [Settlement(lease, Released("its claim was cancelled")) for lease in claiming.result().leases]
        if released and self.database.is_open:
            self.database.submit(self._attempts.settle, released)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """End attempts and release the next jobs of their batches; False where the lease had lapsed."""
        return await self.database.submit(self._attempts.settle, settlements)

    async def renew(self, *, lease_s: float) -> Mapping[str, str | None]:
        """Renew the leases of this process. Return its running jobs: id → reason where a cancel is requested."""
        return await self.database.submit(self._attempts.renew, lease_s)

    async def report(self, lease: Lease, progress: str) -> bool:
        """Keep the latest progress on the job, unless the lease has lapsed."""
        return await self.database.submit(self._attempts.report, ProgressReport(lease, progress))

    def record(self, lease: Lease, event_type: str, data: str) -> Awaitable[bool]:
        """Store an event that the task publishes, unless the lease has lapsed."""
        return self.database.submit(self._attempts.record, PublishedEvent(lease, event_type, data))

    def guard(self, lease: Lease) -> Guard:
        """Return a check that raises LeaseLostError where the lease has lapsed."""

        def require_lease(connection: sqlite3.Connection) -> None:
            if not lease_holds(connection, lease):
                raise LeaseLostError(lease.id)

        return require_lease

    def guard_ended(self, job_id: str) -> Guard:
        """Return a check that raises JobStateError where the job is not final."""
        return partial(require_ended, job_id=job_id)

    async def holds(self, lease: Lease) -> bool:
        """Whether the lease still holds."""
        return await self.database.read(lambda connection: lease_holds(connection, lease))

    # Control

    async def cancel(self, job_id: str, reason: str) -> JobState:
        """Cancel a job, or request it of the process that runs it."""
        return await self.database.submit(self._control.cancel, CancelRequest(job_id, reason))

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again; its history is kept."""
        return await self.database.submit(self._control.retry, job_id)

    # Maintenance

    async def follow_clock(self) -> int:
        """Move delays and retries along with a jump of the wall clock. Return the jump in milliseconds."""
        if not self._wall_clock.has_jumped:
            return 0
        return await self.database.submit(self._wall_clock.follow, None)

    def beat(self, *, lease_s: float, at_ms: int | None = None) -> None:
        """Write the heartbeat of this process; needs neither the event loop nor the database."""
        self._slot.beat(self.clock.monotonic_ms() if at_ms is None else at_ms, lease_ms=int(lease_s * 1000))

    def write_note(self, text: str) -> None:
        """Write a note into this process's slot, for ``asyncbg doctor``."""
        self._slot.write_note(text)

    async def quarantine(self) -> Sequence[str]:
        """Fail the open jobs whose rows cannot be read. Return their ids."""
        return await self.database.submit(self._quarantine.quarantine, None)

    async def save_counters(self, text: str) -> None:
        """Save this process's counters for the other processes."""
        await self.database.read(lambda _: self._counters.save(text))  # in a reader thread, which exists already

    async def load_counters(self) -> tuple[str | None, Sequence[str]]:
        """Return the counters saved for this slot, and for the others."""
        return await self.database.read(lambda _: (self._counters.load_own(), self._counters.load_others()))

    async def processes(self) -> int:
        """Return how many processes run jobs here now."""
        return 1 if self.database.path == MEMORY else await self.database.read(lambda _: len(self._slot.held()))

    async def rescue(self) -> int:
        """Rescue the jobs of dead processes and lapsed leases. Return how many."""
        return await self._rescue([])

    async def _rescue(self, places: list[str]) -> int:
        """Rescue in slices; other writes commit between them."""
        rescued, many = 0, SLICE
        while many >= SLICE:
            many = await self.database.submit(self._rescues.rescue, places)
            rescued += many
        return rescued

    async def purge(self, *, before_ms: int, limit: int) -> int:
        """Delete up to ``limit`` final jobs finished before ``before_ms``, and their events, in slices of rows."""
        return await purge(self.database, before_ms=before_ms, limit=limit)

    async def probe(self) -> None:
        """Prove that a write and a claim work; both are rolled back."""
        if not self.database.has_room():
            raise OutageError("the disk is full; free some space")
        await self.database.submit(self._probes.probe, None)

    # Reading

    async def get(self, job_id: str) -> JobRecord | None:
        """Return one job, or None."""
        return await self._find("id = ?", job_id)

    async def find_by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """Return the job that was submitted under this idempotency key, or None."""
        stored = self.encryption.digest(idempotency_key, "idempotency_key")
        return await self._find("owner = ? AND idempotency_key = ?", owner, stored)

    async def _find(self, where: str, *values: Any) -> JobRecord | None:
        record = await self.database.read(lambda connection: find_record(connection, where, *values))
        return None if record is None else decrypt_record(record, self.encryption)

    async def list(self, query: JobQuery) -> Sequence[JobRecord]:
        """Return jobs, newest first."""
        where, values = conditions(query)
        found = await self.database.read(
            lambda connection: find_records(
                connection, where, values, query.limit, most_value_bytes=query.most_value_bytes
            )
        )
        return [decrypt_record(record, self.encryption) for record in found]

    async def events(
        self, *, after_seq: int, wanted: EventFilter, limit: int, up_to_seq: int | None = None
    ) -> tuple[Sequence[Event], int]:
        """Return stored events after ``after_seq`` that ``wanted`` matches, and the seq the scan reached."""
        return await self.database.read(lambda connection: find_events(connection, after_seq, wanted, limit, up_to_seq))

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """Return the latest attempts of a job, oldest first."""
        return await self.database.read(lambda connection: find_attempts(connection, job_id, self.encryption))

    async def position(self) -> LogPosition:
        """Return which part of the event log is stored."""
        row = await self.database.read(lambda connection: connection.execute(SQL["read_log"]).fetchone())
        log = LogRow._make(row)
        return LogPosition(first_seq=log.purged + 1, last_seq=log.seq)

    async def tail(self, *, after_report: int | None) -> Tail:
        """Return the end of the log, and the progress that other processes reported after ``after_report``."""
        place, now_ms = self.place, self.clock.now_ms()
        return await self.database.read(lambda connection: read_tail(connection, after_report, place, now_ms))

    async def counts(self) -> Mapping[JobState, int]:
        """Count the jobs in each state that is not final."""
        return await self.database.read(count_open)

    async def waiting(self) -> Sequence[TaskCount]:
        """Count the jobs of each task that have not started, by state; tasks without any are left out."""
        return await self.database.read(count_waiting)

    async def waiting_of(self, owners: Collection[str], most: int) -> Mapping[str, int]:
        """Count the jobs of each of these owners that have not started, up to ``most``."""
        values = {"owners": json.dumps(list(owners)), "most": most}
        found: Mapping[str, int] = await self.database.read(
            lambda connection: read_json(connection, "count_owners", values)
        )
        return found

    async def owners(self) -> Sequence[str]:
        """Return the owners of jobs that are not final."""
        found: Sequence[str] = await self.database.read(lambda connection: read_json(connection, "find_owners", {}))
        return found


def _current_epoch(connection: sqlite3.Connection) -> str | None:
    """Return the epoch of the log, or None where the tables are not up to date."""
    version = connection.execute("SELECT version FROM schema_version WHERE component = 'engine'").fetchone()
    if version is None or version[0] != len(MIGRATIONS):
        return None
    log = connection.execute(SQL["read_log"]).fetchone()
    return None if log is None else str(log[0])
