"""Storing new jobs batch by batch, and the jobs of schedules; a job whose key another job has is that job."""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from asyncbg.core.event import Event
from asyncbg.core.job import JobState, NewJob
from asyncbg.errors import IdempotencyError
from asyncbg.privacy.encryption import Encryption
from asyncbg.store.base import Enqueued
from asyncbg.store.encrypted import encrypt_job
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import EventLog
from asyncbg.store.sqlite.statement import SQL, insert_rows, read_json

Key: TypeAlias = tuple[str | None, ...]
"""``("idempotency", owner, key)`` or ``("unique", owner, task, key)``."""


class KeyHolder(NamedTuple):
    """The job that has a key, and the fingerprint of the request it came with."""

    id: str
    fingerprint: str | None


class KeyRow(NamedTuple):
    """An earlier job under a key of the request: a row of ``find_keys``."""

    kind: str
    position: int
    id: str
    fingerprint: str | None


class DueSlot(NamedTuple):
    """A slot of a schedule that is due, and its job."""

    schedule: str
    slot_ms: int
    job: NewJob


class EnqueueLanes:
    """Inserts jobs. ``encryption`` encrypts what is stored; keys are passed as the digests they are compared by."""

    def __init__(self, encryption: Encryption) -> None:
        self._encryption = encryption

    def enqueue(self, tx: Transaction, groups: list[Sequence[NewJob]]) -> list[Enqueued | Exception]:
        """Store batches. A batch with an idempotency key of another request is refused by itself."""
        known = self._known_keys(tx, groups)
        rows: list[NewJob] = []
        results: list[Enqueued | Exception] = []
        for jobs in groups:
            if known is None:
                rows += jobs
                results.append(Enqueued(ids=tuple([job.id for job in jobs]), created=(True,) * len(jobs)))
                continue
            fresh, result = _deduplicate(jobs, known)
            rows += fresh
            results.append(result)
        if rows:
            self.insert(tx, rows)
        return results

    def insert(self, tx: Transaction, jobs: list[NewJob]) -> None:
        """Store jobs and their first events, by one statement each."""
        log = EventLog.of(tx)
        first_n, shift = log.n, log.seq - log.n
        n = first_n
        values: list[Any] = []
        for job in jobs:
            n += 1
            values.append(n)
            values += encrypt_job(job, self._encryption) if self._encryption.is_on else job
            values.append(job.retries + 1)
        insert_rows(tx, "insert_jobs", 23, values)
        tx.connection.execute(SQL["insert_queued_events"], {"shift": shift, "after_n": first_n})
        log.n, log.seq = n, n + shift
        seq = first_n + shift
        for job in jobs:
            seq += 1
            tx.events.append(
                Event(seq, "job." + job.state, job.created_at_ms, job.id, job.task, job.batch, job.owner, 0)
            )

    def _known_keys(self, tx: Transaction, groups: list[Sequence[NewJob]]) -> dict[Key, KeyHolder] | None:
        """Return earlier jobs by key, or None where no job of the batch has a key."""
        keys = [
            [job.owner, job.idempotency_key, job.task, job.unique_key]
            for jobs in groups
            for job in jobs
            if job.idempotency_key is not None or job.unique_key is not None
        ]
        if not keys:
            return None
        known: dict[Key, KeyHolder] = {}
        for row in map(KeyRow._make, read_json(tx.connection, "find_keys", {"keys": json.dumps(keys)})):
            owner, idempotency_key, task, unique_key = keys[row.position]
            key = (idempotency_key,) if row.kind == "idempotency" else (task, unique_key)
            known[row.kind, owner, *key] = KeyHolder(row.id, row.fingerprint)
        return known

    def fire(self, tx: Transaction, items: list[DueSlot]) -> list[bool | Exception]:
        """Store the jobs of due slots and advance their schedules. False: fired before, or the job's key is taken.

        The process that advances a schedule first makes the job of the slot, and no other does.
        """
        return [self._fire_one(tx, item) for item in items]

    def _fire_one(self, tx: Transaction, due: DueSlot) -> bool | Exception:
        values = {"name": due.schedule, "slot_ms": due.slot_ms}
        if tx.connection.execute(SQL["advance_schedule"], values).rowcount == 0:
            return False
        [enqueued] = self.enqueue(tx, [[due.job]])
        return enqueued if isinstance(enqueued, Exception) else enqueued.created[0]


def remember_slots(
    connection: sqlite3.Connection, names: Collection[str], *, since_ms: int, latest_ms: int
) -> Mapping[str, int]:
    """Return the last slot fired of each schedule; one that is new, or beyond ``latest_ms``, becomes ``since_ms``."""
    values = {"names": json.dumps(list(names)), "since_ms": since_ms, "latest_ms": latest_ms}
    connection.execute(SQL["remember_schedules"], values)
    slots: Mapping[str, int] = read_json(connection, "last_slots", values)
    return slots


def _deduplicate(jobs: Sequence[NewJob], known: dict[Key, KeyHolder]) -> tuple[Sequence[NewJob], Enqueued | Exception]:
    """Return the jobs of a group that are new, and the result of the group. A job whose key is held is its holder."""
    fresh: list[NewJob] = []
    ids: list[str] = []
    ours: dict[Key, KeyHolder] = {}
    for job in jobs:
        holder = KeyHolder(job.id, job.fingerprint)
        keys: tuple[Key, Key] = (
            ("idempotency", job.owner, job.idempotency_key),
            ("unique", job.owner, job.task, job.unique_key),
        )
        for key in keys:
            if key[-1] is not None and holder.id == job.id:
                holder = ours.get(key) or known.get(key) or holder
                if key[0] == "idempotency" and holder.fingerprint != job.fingerprint:
                    return (), IdempotencyError(key[-1])
        ids.append(holder.id)
        if holder.id == job.id:
            fresh.append(job)
            ours.update({key: holder for key in keys if key[-1] is not None})
    known.update(ours)  # only once the whole group is accepted
    created = tuple(found == job.id for found, job in zip(ids, jobs, strict=True))
    return _rechain(fresh, jobs), Enqueued(ids=tuple(ids), created=created)


def _rechain(fresh: list[NewJob], jobs: Sequence[NewJob]) -> list[NewJob]:
    """Name the batch after its first new job, which waits for no other."""
    if len(fresh) == len(jobs) or not fresh:
        return fresh
    first = fresh[0]
    state = JobState.SCHEDULED if first.run_at_ms > first.created_at_ms else JobState.QUEUED
    return [
        job._replace(batch=first.id, state=state.value if job is first else JobState.WAITING.value) for job in fresh
    ]
