"""The store in a SQLite file: each method is one lane of the group commit, or one read."""

import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, assert_never, cast

import aiosqlite

from asyncbg.backends.base import Claimed, Enqueued, JobQuery, LogPosition, Settlement
from asyncbg.backends.joined import join
from asyncbg.backends.place import Place
from asyncbg.backends.sealed import (
    digested_job,
    opened,
    opened_lease,
    sealed_job,
    sealed_settlement,
    use_lookup,
)
from asyncbg.backends.sql import load_script, load_statements
from asyncbg.backends.sqlite_read import conditions, find_events, find_record, find_records
from asyncbg.clock import Clock, SystemClock
from asyncbg.database import MEMORY, Database, Transaction
from asyncbg.errors import IdempotencyError, JobNotFoundError, JobStateError, OutageError, OverloadedError
from asyncbg.event import Event, EventFilter, EventType, dump
from asyncbg.ids import random_token
from asyncbg.job import (
    FINAL_STATES,
    Cancelled,
    Done,
    Failed,
    JobRecord,
    JobState,
    Lease,
    NewJob,
    Released,
    Retry,
)
from asyncbg.seal import Seal

SQL = load_statements("sqlite.sql")
MIGRATIONS = tuple(load_script(f"sqlite_{version:04}.sql") for version in (1, 2, 3, 4))
POISON_AFTER = 3
"""A job that took its process down this often is failed instead of run again."""

_PLACEHOLDERS = {width: "(" + ",".join("?" * width) + ")" for width in (6, 10, 23)}
_LARGEST_CHUNK = 512
_MOST_WAITING = 10_000
_STALL_S = 0.5
_NO_END = 2**62
_JUMP_MS = 1_000
_PURGED_JOBS, _PURGED_EVENTS = 100, 500
"""Rows of one slice of a purge: a few milliseconds of the writer."""

# Plain strings: an enum's ``value`` costs a call each time, and a job needs a dozen.
_QUEUED, _SCHEDULED = JobState.QUEUED.value, JobState.SCHEDULED.value
_SUCCEEDED, _FAILED, _CANCELLED = JobState.SUCCEEDED.value, JobState.FAILED.value, JobState.CANCELLED.value
_JOB_QUEUED, _JOB_STARTED, _JOB_RETRYING = EventType.QUEUED.value, EventType.STARTED.value, EventType.RETRYING.value
_JOB_SUCCEEDED, _JOB_FAILED = EventType.SUCCEEDED.value, EventType.FAILED.value
_JOB_CANCELLED = EventType.CANCELLED.value


class _Ref(NamedTuple):
    """What an event says of its job."""

    n: int
    id: str
    task: str
    batch: str
    owner: str
    attempt: int
    state: str


class _Log:
    """The numbers given out in this transaction; written back once, at its end."""

    def __init__(self, tx: Transaction) -> None:
        self.epoch, self.seq, self.n, _ = tx.connection.execute(SQL["read_log"]).fetchone()

    def __call__(self, tx: Transaction) -> None:
        tx.connection.execute(SQL["write_log"], (self.seq, self.n))

    @staticmethod
    def of(tx: Transaction) -> "_Log":
        log = tx.memo.get("log")
        if log is None:
            log = tx.memo["log"] = _Log(tx)
        return log


class SQLiteBackend:
    """Jobs and events in one SQLite database, shared by any number of processes of one machine."""

    def __init__(self, database: Database, *, clock: Clock | None = None, seal: Seal | None = None) -> None:
        """Use ``database``, which is opened and closed with the backend; ``seal`` encrypts what is stored in it."""
        self.database = database
        self.clock = clock or SystemClock()
        self.seal = seal or Seal()
        self.epoch = ""
        self._wall_offset_ms = 0
        self.on_commit: Callable[[Sequence[Event]], None] = lambda events: None
        self._place = Place(None if database.path == MEMORY else Path(database.path))
        database.after_commit = self._after_commit

    @property
    def place(self) -> str:
        """The name of this process's place at the database."""
        return self._place.name

    async def open(self) -> None:
        """Open the database, bring its tables up to date, take a place and take up what it left behind."""
        await self.database.open()
        try:
            await self.database.migrate("engine", MIGRATIONS)
            self._wall_offset_ms = self._offset_ms()
            self.epoch = await self.database.write(self._start_log)
            await use_lookup(self.database, self.seal)
            self._place.take()
            await self.database.submit(self._rescue, [self.place])
        except BaseException:
            await self.close()
            raise

    async def attach(self) -> None:
        """Open the store beside those who run its jobs: to look, submit and steer, never to run.

        Takes no place and takes up no job; writes only where the tables are not up to date.
        """
        await self.database.open()
        try:
            epoch = await self.database.read(_current_epoch)
            if epoch is None:
                await self.database.migrate("engine", MIGRATIONS)
                self._wall_offset_ms = self._offset_ms()
                epoch = await self.database.write(self._start_log)
            self.epoch = epoch
            await use_lookup(self.database, self.seal)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Commit what is pending, close the connections, leave the place."""
        await self.database.close()
        self._place.leave()

    def _start_log(self, connection: sqlite3.Connection) -> str:
        connection.execute(SQL["start_log"], {"epoch": secrets.token_hex(4), "wall_offset": self._wall_offset_ms})
        return str(connection.execute(SQL["read_log"]).fetchone()[0])

    def _after_commit(self, notes: list[Any]) -> None:
        if notes:
            self.on_commit(notes)

    # Accepting

    async def enqueue(self, jobs: Sequence[NewJob]) -> Enqueued:
        """Store one batch; returns when it is on disk. Refuses while too much waits for a commit that hangs."""
        if self.database.waiting >= _MOST_WAITING and self.database.stalled_s > _STALL_S:
            raise OverloadedError("too much waits for the database; come back later", retry_after_s=1.0)
        digested = [digested_job(job, self.seal) for job in jobs] if self.seal.is_on else jobs
        try:
            return await self.database.submit(self._enqueue, digested)  # type: ignore[no-any-return]  # a lane's result
        except IdempotencyError as error:
            given = {new.idempotency_key: job.idempotency_key for new, job in zip(digested, jobs, strict=True)}
            raise IdempotencyError(given.get(error.key) or error.key) from None

    async def enqueue_within(self, connection: aiosqlite.Connection, job: NewJob) -> JobRecord:
        """Store a job in the open transaction of the caller's own connection; the log's tail tells of its commit."""

        def enqueue(tx: Transaction) -> JobRecord | None:
            (result,) = self._enqueue(tx, [[digested_job(job, self.seal)]])
            if isinstance(result, Exception):
                raise result
            return find_record(tx.connection, "id = ?", result.ids[0])

        return opened(cast(JobRecord, await join(connection, self.database.path, enqueue)), self.seal)

    def _enqueue(self, tx: Transaction, groups: list[Sequence[NewJob]]) -> list[Enqueued | Exception]:
        known = self._known_keys(tx, groups)
        rows: list[NewJob] = []
        results: list[Enqueued | Exception] = []
        for jobs in groups:
            if known is None:
                rows += jobs
                results.append(Enqueued(ids=tuple([job.id for job in jobs]), created=(True,) * len(jobs)))
                continue
            fresh, result = _without_earlier(jobs, known)
            rows += fresh
            results.append(result)
        if rows:
            self._insert(tx, rows)
        return results

    def _insert(self, tx: Transaction, jobs: list[NewJob]) -> None:
        log = _Log.of(tx)
        first_n, shift = log.n, log.seq - log.n
        n = first_n
        values: list[Any] = []
        for job in jobs:
            n += 1
            values.append(n)
            values += sealed_job(job, self.seal) if self.seal.is_on else job
            values.append(job.retries + 1)
        _insert_rows(tx, "insert_jobs", 23, values)
        tx.connection.execute(SQL["insert_queued_events"], {"shift": shift, "after_n": first_n})
        log.n, log.seq = n, n + shift
        seq = first_n + shift
        for job in jobs:
            seq += 1
            tx.notes.append(
                Event(seq, "job." + job.state, job.created_at_ms, job.id, job.task, job.batch, job.owner, 0)
            )

    def _known_keys(self, tx: Transaction, groups: list[Sequence[NewJob]]) -> dict[tuple[Any, ...], Any] | None:
        """Earlier jobs by key, or None where no job of the batch has one."""
        keys = [
            [job.owner, job.idempotency_key, job.task, job.unique_key]
            for jobs in groups
            for job in jobs
            if job.idempotency_key is not None or job.unique_key is not None
        ]
        if not keys:
            return None
        known: dict[tuple[Any, ...], Any] = {}
        for kind, at, job_id, fingerprint in _json(tx.connection, "find_keys", {"keys": json.dumps(keys)}):
            owner, idempotency_key, task, unique_key = keys[at]
            key = (idempotency_key,) if kind == "idempotency" else (task, unique_key)
            known[kind, owner, *key] = (job_id, fingerprint)
        return known

    # Scheduling

    async def slots(self, names: Collection[str], *, since_ms: int, latest_ms: int) -> Mapping[str, int]:
        """The last slot fired of each schedule; one that is new, or beyond ``latest_ms``, is set to ``since_ms``."""
        values = {"names": json.dumps(list(names)), "since_ms": since_ms, "latest_ms": latest_ms}

        def remember(connection: sqlite3.Connection) -> Mapping[str, int]:
            connection.execute(SQL["remember_schedules"], values)
            return _json(connection, "last_slots", values)  # type: ignore[no-any-return]

        return await self.database.write(remember)

    async def fire(self, schedule: str, slot_ms: int, job: NewJob) -> bool:
        """Store the job of a slot and move the schedule on, unless the slot was fired before."""
        item = (schedule, slot_ms, digested_job(job, self.seal))
        return await self.database.submit(self._fire, item)  # type: ignore[no-any-return]

    def _fire(self, tx: Transaction, items: list[tuple[str, int, NewJob]]) -> list[bool | Exception]:
        return [self._fire_one(tx, *item) for item in items]

    def _fire_one(self, tx: Transaction, schedule: str, slot_ms: int, job: NewJob) -> bool | Exception:
        values = {"name": schedule, "slot_ms": slot_ms}
        if tx.connection.execute(SQL["advance_schedule"], values).rowcount == 0:
            return False
        [enqueued] = self._enqueue(tx, [[job]])
        return enqueued if isinstance(enqueued, Exception) else enqueued.created[0]

    # Running

    async def claim(self, limit: int, *, lease_s: float, skip: Collection[str] = ()) -> Claimed:
        """Promote what is due, then take up to ``limit`` queued jobs."""
        return await self.database.submit(self._claim, (limit, lease_s, skip))  # type: ignore[no-any-return]

    def _claim(self, tx: Transaction, requests: list[tuple[int, float, Collection[str]]]) -> list[Claimed]:
        return [self._claim_one(tx, *request) for request in requests]

    def _claim_one(self, tx: Transaction, limit: int, lease_s: float, skip: Collection[str]) -> Claimed:
        now_ms = self.clock.now_ms()
        due = _json(tx.connection, "find_due", {"now_ms": now_ms})
        if due:
            self._queue(tx, due, now_ms)
        found, next_due_ms = tx.connection.execute(
            SQL["find_ready"], {"place": self.place, "skip": json.dumps(sorted(skip)), "limit": limit}
        ).fetchone()
        token = random_token()
        leases = [opened_lease(Lease._make([*row, token]), self.seal) for row in json.loads(found)]
        if leases:
            tx.connection.execute(
                SQL["claim_jobs"],
                {
                    "ns": json.dumps([lease.n for lease in leases]),
                    "token": token,
                    "lease_until": self.clock.monotonic_ms() + int(lease_s * 1000),
                    "place": self.place,
                    "now_ms": now_ms,
                },
            )
            self._tell(tx, [(lease.n, _JOB_STARTED, now_ms, lease, lease.attempt, None) for lease in leases])
        return Claimed(leases, next_due_ms)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """End attempts and release the next jobs of their batches; False where the lease had lapsed."""
        return await self.database.submit(self._settle, settlements)  # type: ignore[no-any-return]

    def _settle(self, tx: Transaction, groups: list[Sequence[Settlement]]) -> list[Sequence[bool]]:
        held = iter(self._settle_all(tx, [item for items in groups for item in items]))
        return [[next(held) for _ in items] for items in groups]

    def _settle_all(self, tx: Transaction, items: list[Settlement]) -> list[bool]:
        now_ms = self.clock.now_ms()
        pairs = json.dumps([(item.lease.n, item.lease.token) for item in items])
        found, any_waiting = tx.connection.execute(SQL["live_leases"], {"pairs": pairs}).fetchone()
        live = {(n, token): cancel_reason for n, token, cancel_reason in json.loads(found)}
        values: list[Any] = []
        told: list[tuple[Any, ...]] = []
        ended: list[tuple[str, bool]] = []
        results = []
        for item in items:
            lease = item.lease
            held = (lease.n, lease.token)
            results.append(held in live)
            if held not in live:
                continue
            if self.seal.is_on:
                item = sealed_settlement(item, self.seal)  # noqa: PLW2901 - from here on as it is stored
            row, event_type, data = _verdict(item, live.pop(held), now_ms)
            values += row
            told.append((lease.n, event_type, now_ms, lease, lease.attempt, data))
            if any_waiting and row[3] is not None:
                ended.append((lease.batch, bool(lease.stop_on_failure) and row[1] != _SUCCEEDED))
        if values:
            _insert_rows(tx, "settle_jobs", 10, values)
            self._tell(tx, told)
            self._release_next(tx, ended, now_ms)
        return results

    def _release_next(self, tx: Transaction, ended: Iterable[tuple[str, bool]], now_ms: int) -> None:
        """Let the next job of each batch go on, or cancel the rest where the batch stops on failure."""
        stopped = [batch for batch, stops in ended if stops]
        if stopped:
            self._cancel_open(
                tx, _json(tx.connection, "find_waiting_of_batches", {"batches": json.dumps(stopped)}),
                _EARLIER_FAILED, now_ms,
            )  # fmt: skip
        going_on = [batch for batch, stops in ended if not stops]
        if going_on:
            self._queue(tx, _json(tx.connection, "find_next_in_batch", {"batches": json.dumps(going_on)}), now_ms)

    async def renew(self, *, lease_s: float) -> Mapping[str, str | None]:
        """Prolong the leases of this place; its running jobs, with the reason where a cancel is requested."""
        return await self.database.submit(self._renew, lease_s)  # type: ignore[no-any-return]

    def _renew(self, tx: Transaction, items: list[float]) -> list[Mapping[str, str | None]]:
        lease_until = self.clock.monotonic_ms() + int(max(items) * 1000)
        tx.connection.execute(SQL["renew_leases"], {"lease_until": lease_until, "place": self.place})
        running = {row[0]: row[2] for row in _json(tx.connection, "running_here", {"place": self.place})}
        return [running] * len(items)

    async def report(self, lease: Lease, progress: str) -> bool:
        """Keep the latest progress on the job, unless the lease has lapsed."""
        return await self.database.submit(self._report, (lease, progress))  # type: ignore[no-any-return]

    def _report(self, tx: Transaction, items: list[tuple[Lease, str]]) -> list[bool]:
        latest = {(lease.n, lease.token): (lease.n, lease.token, progress) for lease, progress in items}
        live = self._live(tx, [lease for lease, _ in items])
        tx.connection.execute(SQL["report_progress"], {"reports": json.dumps(list(latest.values()))})
        return [(lease.n, lease.token) in live for lease, _ in items]

    def record(self, lease: Lease, event_type: str, data: str) -> Awaitable[bool]:
        """Store an event of the task's own, unless the lease has lapsed."""
        return self.database.submit(self._record, (lease, event_type, data))

    def _record(self, tx: Transaction, items: list[tuple[Lease, str, str]]) -> list[bool]:
        live = self._live(tx, [lease for lease, _, _ in items])
        now_ms = self.clock.now_ms()
        self._tell(
            tx,
            [
                (lease.n, event_type, now_ms, lease, lease.attempt, data)
                for lease, event_type, data in items
                if (lease.n, lease.token) in live
            ],
        )
        return [(lease.n, lease.token) in live for lease, _, _ in items]

    def _live(self, tx: Transaction, leases: list[Lease]) -> set[tuple[int, int]]:
        pairs = json.dumps([(lease.n, lease.token) for lease in leases])
        found = json.loads(tx.connection.execute(SQL["live_leases"], {"pairs": pairs}).fetchone()[0])
        return {(n, token) for n, token, _ in found}

    # Steering

    async def cancel(self, job_id: str, reason: str) -> JobState:
        """Cancel a job, or request it of the place that runs it."""
        return await self.database.submit(self._cancel, (job_id, reason))  # type: ignore[no-any-return]

    def _cancel(self, tx: Transaction, items: list[tuple[str, str]]) -> list[JobState | Exception]:
        return [self._cancel_one(tx, *item) for item in items]

    def _cancel_one(self, tx: Transaction, job_id: str, reason: str) -> JobState | Exception:
        record = find_record(tx.connection, "id = ?", job_id)
        if record is None:
            return JobNotFoundError(job_id)
        if record.state in FINAL_STATES:
            return JobStateError(job_id, record.state, "cancel")
        if record.state is JobState.RUNNING:
            tx.connection.execute(SQL["request_cancel"], {"n": record.n, "reason": reason})
            return JobState.RUNNING
        now_ms = self.clock.now_ms()
        self._cancel_open(tx, [record.n], reason, now_ms)
        if tx.connection.execute(SQL["stops_on_failure"], (record.n,)).fetchone()[0]:
            waiting = _json(tx.connection, "find_waiting_of_batches", {"batches": json.dumps([record.batch])})
            self._cancel_open(tx, [n for n in waiting if n > record.n], _EARLIER_FAILED, now_ms)
        self._release_next(tx, [(record.batch, False)], now_ms)
        return JobState.CANCELLED

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again, its history kept."""
        return await self.database.submit(self._retry, job_id)  # type: ignore[no-any-return]

    def _retry(self, tx: Transaction, items: list[str]) -> list[JobState | Exception]:
        return [self._retry_one(tx, job_id) for job_id in items]

    def _retry_one(self, tx: Transaction, job_id: str) -> JobState | Exception:
        record = find_record(tx.connection, "id = ?", job_id)
        if record is None:
            return JobNotFoundError(job_id)
        if record.state not in FINAL_STATES:
            return JobStateError(job_id, record.state, "retry")
        if not record.durable:
            return JobStateError(job_id, f"{record.state} and not durable: its function is gone", "retry")
        now_ms = self.clock.now_ms()
        try:
            tx.connection.execute(SQL["retry_job"], {"n": record.n, "now_ms": now_ms})
        except sqlite3.IntegrityError:
            return JobStateError(job_id, f"{record.state}, and another job of its key is open", "retry")
        self._tell_refs(tx, [record.n], EventType.QUEUED, now_ms, {"reason": "retried"})
        return JobState.QUEUED

    def _offset_ms(self) -> int:
        return self.clock.now_ms() - self.clock.monotonic_ms()

    async def follow_clock(self) -> int:
        """Move delays and retries along where the wall clock has jumped; returns by how many milliseconds it did."""
        if abs(self._offset_ms() - self._wall_offset_ms) < _JUMP_MS:
            return 0
        return await self.database.submit(self._follow_clock, None)  # type: ignore[no-any-return]

    def _follow_clock(self, tx: Transaction, items: list[None]) -> list[int]:
        """One process of all moves them: the others find the jump noted in the log's row already."""
        self._wall_offset_ms = offset_ms = self._offset_ms()
        jump_ms = offset_ms - tx.connection.execute(SQL["read_wall_offset"]).fetchone()[0]
        if abs(jump_ms) >= _JUMP_MS:
            tx.connection.execute(SQL["shift_delays"], {"jump_ms": jump_ms})
            tx.connection.execute(SQL["write_wall_offset"], {"wall_offset": offset_ms})
        return [jump_ms] * len(items)

    def beat(self, *, lease_s: float, at_ms: int | None = None) -> None:
        """Tell the other processes that this one lives; needs neither the event loop nor the database."""
        self._place.beat(self.clock.monotonic_ms() if at_ms is None else at_ms, lease_ms=int(lease_s * 1000))

    def note(self, text: str) -> None:
        """Leave word in this process's place, for whoever looks from outside."""
        self._place.note(text)

    async def rescue(self) -> int:
        """Take up the jobs of dead places and lapsed leases; returns how many."""
        with self._place.dead() as places:
            return await self.database.submit(self._rescue, places)  # type: ignore[no-any-return]

    def _rescue(self, tx: Transaction, items: list[list[str]]) -> list[int]:
        now_ms = self.clock.now_ms()
        places = json.dumps(sorted({place for item in items for place in item}))
        monotonic_ms = self.clock.monotonic_ms()
        alive = json.dumps(self._place.alive(monotonic_ms))
        known = json.dumps(self._place.known())  # read here: whoever commits before this transaction has its file
        gone = {"places": places, "known": known}
        lost = _json(tx.connection, "find_lost", {**gone, "monotonic_ms": monotonic_ms, "alive": alive})
        bound = _json(tx.connection, "find_bound", gone)
        fates: dict[tuple[str, str], list[int]] = {}
        ended: list[tuple[str, bool]] = []
        for n, at_most_once, durable, crashes, _, cancel_reason, batch, stops in lost:
            fate = _fate(at_most_once, durable, crashes, cancel_reason)
            fates.setdefault(fate, []).append(n)
            if fate[0] != "queued":
                ended.append((batch, bool(stops)))
        for n, _, batch, stops in bound:
            fates.setdefault(_LOST, []).append(n)
            ended.append((batch, bool(stops)))
        for fate, ns in fates.items():
            self._apply_fate(tx, fate, ns, now_ms)
        self._release_next(tx, ended, now_ms)
        return [len(lost) + len(bound)] * len(items)

    def _apply_fate(self, tx: Transaction, fate: tuple[str, str], ns: list[int], now_ms: int) -> None:
        text = json.dumps(ns)
        match fate:
            case ("queued", reason):
                tx.connection.execute(SQL["requeue_lost"], {"ns": text})
                self._tell_refs(tx, ns, EventType.QUEUED, now_ms, {"reason": reason})
            case ("cancelled", reason):
                tx.connection.execute(SQL["cancel_lost"], {"ns": text, "now_ms": now_ms})
                self._tell_refs(tx, ns, EventType.CANCELLED, now_ms, {"reason": reason})
            case (error_type, message):
                tx.connection.execute(
                    SQL["fail_lost"], {"ns": text, "now_ms": now_ms, "type": error_type, "message": message}
                )
                self._tell_refs(tx, ns, EventType.FAILED, now_ms, {"error": {"type": error_type, "message": message}})

    async def purge(self, *, before_ms: int, limit: int) -> int:
        """Delete up to ``limit`` final jobs finished before ``before_ms``, and their events, in slices of rows."""
        found = await self.database.read(lambda connection: _find_purgeable(connection, before_ms, limit))
        purged, is_done = 0, False
        while not is_done:
            slice_, found = found[:_PURGED_JOBS], found[_PURGED_JOBS:]
            many, is_clean = await self.database.submit(self._purge, (before_ms, slice_))
            purged += many
            is_done = is_clean and not found
        return purged

    def _purge(self, tx: Transaction, items: list[tuple[int, list[int]]]) -> list[tuple[int, bool]]:
        """One slice each: how many jobs went, and whether all events of purged jobs did."""
        return [self._purge_slice(tx, *item) for item in items]

    def _purge_slice(self, tx: Transaction, before_ms: int, found: list[int]) -> tuple[int, bool]:
        ns = _json(tx.connection, "still_purgeable", {"ns": json.dumps(found), "before_ms": before_ms})
        if ns:
            for name in ("mark_purged", "delete_jobs", "remember_purged"):
                tx.connection.execute(SQL[name], {"ns": json.dumps(ns)})
        deleted = tx.connection.execute(SQL["delete_events"], {"limit": _PURGED_EVENTS}).rowcount
        if deleted:
            tx.connection.execute(SQL["forget_purged"])
        return len(ns), deleted < _PURGED_EVENTS

    async def probe(self) -> None:
        """Prove that a write and a claim work; leaves nothing behind."""
        if not self.database.has_room():
            raise OutageError("the disk is full; free some space")
        await self.database.submit(self._probe, None)

    def _probe(self, tx: Transaction, items: list[None]) -> list[None]:
        log = _Log.of(tx)
        seq, n, notes = log.seq, log.n, len(tx.notes)
        tx.connection.execute("SAVEPOINT probe")
        now_ms = self.clock.now_ms()
        job = NewJob(
            id="probe", task="probe", queue="probe", owner="", batch="probe", tags="[]", state="queued",
            priority=2**40, durable=1, at_most_once=0, stop_on_failure=0, retries=0, args="{}", personal="{}",
            created_at_ms=now_ms, run_at_ms=now_ms,
        )  # fmt: skip
        self._insert(tx, [job])
        self._claim_one(tx, 1, 1.0, ())
        tx.connection.execute("ROLLBACK TO probe")
        tx.connection.execute("RELEASE probe")
        log.seq, log.n = seq, n
        del tx.notes[notes:]
        return [None] * len(items)

    # Shared steps

    def _queue(self, tx: Transaction, ns: list[int], now_ms: int) -> None:
        if not ns:
            return
        tx.connection.execute(SQL["queue_jobs"], {"ns": json.dumps(ns), "now_ms": now_ms})
        self._tell_refs(tx, ns, None, now_ms)

    def _cancel_open(self, tx: Transaction, ns: list[int], reason: str, now_ms: int) -> None:
        if not ns:
            return
        tx.connection.execute(SQL["cancel_jobs"], {"ns": json.dumps(ns), "now_ms": now_ms, "reason": reason})
        self._tell_refs(tx, ns, EventType.CANCELLED, now_ms, {"reason": reason})

    def _tell_refs(
        self, tx: Transaction, ns: list[int], event_type: str | None, now_ms: int, data: Mapping[str, Any] | None = None
    ) -> None:
        """Store one event for each job; without a type it is named after the state the job is in now."""
        refs = [_Ref(*row) for row in _json(tx.connection, "event_refs", {"ns": json.dumps(ns)})]
        text = dump(data) if data else None
        self._tell(tx, [(ref.n, str(event_type or f"job.{ref.state}"), now_ms, ref, ref.attempt, text) for ref in refs])

    def _tell(self, tx: Transaction, told: Sequence[tuple[Any, ...]]) -> None:
        """Store events (n, type, at, job, attempt, data) and note them for the bus."""
        if not told:
            return
        log = _Log.of(tx)
        seq = log.seq
        values: list[Any] = []
        for n, event_type, at_ms, job, attempt, data in told:
            seq += 1
            values += (seq, n, event_type, at_ms, attempt, data)
            tx.notes.append(Event(seq, event_type, at_ms, job.id, job.task, job.batch, job.owner, attempt, data))
        log.seq = seq
        _insert_rows(tx, "insert_events", 6, values)

    # Reading

    async def get(self, job_id: str) -> JobRecord | None:
        """One job, or None."""
        return await self._find("id = ?", job_id)

    async def find_by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """The job that was submitted under this idempotency key, or None."""
        stored = self.seal.digest(idempotency_key, "idempotency_key")
        return await self._find("owner = ? AND idempotency_key = ?", owner, stored)

    async def _find(self, where: str, *values: Any) -> JobRecord | None:
        record = await self.database.read(lambda connection: find_record(connection, where, *values))
        return None if record is None else opened(record, self.seal)

    async def list(self, query: JobQuery) -> Sequence[JobRecord]:
        """Jobs, newest first."""
        where, values = conditions(query)
        found = await self.database.read(lambda connection: find_records(connection, where, values, query.limit))
        return [opened(record, self.seal) for record in found]

    async def events(
        self, *, after_seq: int, wanted: EventFilter, limit: int, up_to_seq: int | None = None
    ) -> tuple[Sequence[Event], int]:
        """Stored events after ``after_seq`` that ``wanted`` matches, and the seq the scan reached."""
        return await self.database.read(lambda connection: find_events(connection, after_seq, wanted, limit, up_to_seq))

    async def position(self) -> LogPosition:
        """Which part of the log there is."""
        _, seq, _, purged = await self.database.read(lambda connection: connection.execute(SQL["read_log"]).fetchone())
        return LogPosition(purged + 1, seq)

    async def counts(self) -> Mapping[JobState, int]:
        """How many jobs are in each state that is not final."""
        found = await self.database.read(lambda connection: _json(connection, "count_open", {}))
        return {JobState(state): many for state, many in found.items()}

    async def waiting_by_owner(self) -> Mapping[str, int]:
        """How many jobs of each owner are neither running nor final."""
        found: Mapping[str, int] = await self.database.read(lambda connection: _json(connection, "count_owners", {}))
        return found


_EARLIER_FAILED = "an earlier job of the batch did not succeed"
_LOST = ("NotDurableError", "its function lived only in a process that is gone; hand over a module-level function")
_INTERRUPTED = ("InterruptedError", "its process ended while it ran, and it may run at most once")
_POISON = ("PoisonError", f"it took its process down {POISON_AFTER} times; mend it, then retry it")


def _fate(at_most_once: int, durable: int, crashes: int, cancel_reason: str | None) -> tuple[str, str]:
    """What becomes of a job whose process is gone: (state or error type, reason or message)."""
    if cancel_reason is not None:
        return ("cancelled", cancel_reason)
    if not durable:
        return _LOST
    if at_most_once:
        return _INTERRUPTED
    if crashes + 1 >= POISON_AFTER:
        return _POISON
    return ("queued", "its worker was lost")


def _verdict(item: Settlement, cancel_reason: str | None, now_ms: int) -> tuple[tuple[Any, ...], str, str | None]:
    """The row of ``settle_jobs``, the event type and its data for one ended attempt."""
    lease, outcome = item.lease, item.outcome
    if cancel_reason is not None and isinstance(outcome, Retry | Released):
        outcome = Cancelled(cancel_reason)
    n, attempt, progress = lease.n, lease.attempt, item.progress
    row: tuple[Any, ...]
    match outcome:
        case Done(result):
            row = (n, _SUCCEEDED, None, now_ms, result, None, None, progress, attempt, None)
            return row, _JOB_SUCCEEDED, None
        case Retry(error, run_at_ms):
            kind, text = error.type, error.message
            row = (n, _SCHEDULED, run_at_ms, None, None, kind, text, progress, attempt, None)
            data = {"error": error.as_dict(), "delay_s": max(0, run_at_ms - now_ms) / 1000}
            return row, _JOB_RETRYING, dump(data)
        case Failed(error):
            row = (n, _FAILED, None, now_ms, None, error.type, error.message, progress, attempt, None)
            return row, _JOB_FAILED, dump({"error": error.as_dict()})
        case Cancelled(reason):
            row = (n, _CANCELLED, None, now_ms, None, None, None, progress, attempt, reason)
            return row, _JOB_CANCELLED, dump({"reason": reason})
        case Released(reason):
            row = (n, _QUEUED, None, None, None, None, None, progress, attempt - 1, None)
            return row, _JOB_QUEUED, dump({"reason": reason})
        case _:
            assert_never(outcome)


def _without_earlier(
    jobs: Sequence[NewJob], known: dict[tuple[Any, ...], Any]
) -> tuple[Sequence[NewJob], Enqueued | Exception]:
    """The jobs of a group that are new, and what to answer. Those whose key another job has are that job."""
    fresh: list[NewJob] = []
    ids: list[str] = []
    ours: dict[tuple[Any, ...], Any] = {}
    for job in jobs:
        earlier_id = job.id
        keys = (
            ("idempotency", job.owner, job.idempotency_key),
            ("unique", job.owner, job.task, job.unique_key),
        )
        for key in keys:
            if key[-1] is not None and earlier_id == job.id:
                earlier_id, fingerprint = ours.get(key) or known.get(key) or (job.id, job.fingerprint)
                if key[0] == "idempotency" and fingerprint != job.fingerprint:
                    return (), IdempotencyError(key[-1])
        ids.append(earlier_id)
        if earlier_id == job.id:
            fresh.append(job)
            ours.update({key: (job.id, job.fingerprint) for key in keys if key[-1] is not None})
    known.update(ours)  # not before the whole group is accepted
    created = tuple(found == job.id for found, job in zip(ids, jobs, strict=True))
    return _rechained(fresh, jobs), Enqueued(ids=tuple(ids), created=created)


def _rechained(fresh: list[NewJob], jobs: Sequence[NewJob]) -> list[NewJob]:
    """A batch is named by its first job, which waits for nobody; also where the first was an earlier job."""
    if len(fresh) == len(jobs) or not fresh:
        return fresh
    first = fresh[0]
    state = JobState.SCHEDULED if first.run_at_ms > first.created_at_ms else JobState.QUEUED
    return [
        job._replace(batch=first.id, state=state.value if job is first else JobState.WAITING.value) for job in fresh
    ]


def _find_purgeable(connection: sqlite3.Connection, before_ms: int, limit: int) -> list[int]:
    """The oldest jobs that may go."""
    row = connection.execute(SQL["find_purge_end"], {"before_ms": before_ms}).fetchone()
    values = {"before_ms": before_ms, "limit": limit, "end": row[0] if row else _NO_END}
    return _json(connection, "find_purgeable", values)  # type: ignore[no-any-return]


def _current_epoch(connection: sqlite3.Connection) -> str | None:
    """The name of the database, or None where its tables are not up to date."""
    version = connection.execute("SELECT version FROM schema_version WHERE component = 'engine'").fetchone()
    if version is None or version[0] != len(MIGRATIONS):
        return None
    log = connection.execute(SQL["read_log"]).fetchone()
    return None if log is None else str(log[0])


def _json(connection: sqlite3.Connection, name: str, values: Mapping[str, Any]) -> Any:
    """The one JSON value that a statement answers with."""
    return json.loads(connection.execute(SQL[name], values).fetchone()[0])


def _insert_rows(tx: Transaction, name: str, width: int, values: list[Any]) -> None:
    """Run a statement over many rows of ``width`` values, in chunks whose sizes are powers of two.

    So few different statements occur that all of them stay prepared.
    """
    statement, row = SQL[name], _PLACEHOLDERS[width]
    at, left = 0, len(values) // width
    while left:
        size = min(_LARGEST_CHUNK, 1 << (left.bit_length() - 1))
        chunk = values if size * width == len(values) else values[at * width : (at + size) * width]
        tx.connection.execute(statement.replace("{rows}", ",".join([row] * size)), chunk)
        at, left = at + size, left - size
