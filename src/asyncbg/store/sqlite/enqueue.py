"""Storing new jobs, batch by batch; a job whose key another one has is that one."""

import json
from collections.abc import Sequence
from typing import Any

from asyncbg.core.event import Event
from asyncbg.core.job import JobState, NewJob
from asyncbg.errors import IdempotencyError
from asyncbg.privacy.encryption import Encryption
from asyncbg.store.base import Enqueued
from asyncbg.store.encrypted import encrypt_job
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import Log
from asyncbg.store.sqlite.statement import SQL, insert_rows, read_json


class EnqueueLanes:
    """``encryption`` encrypts what is stored; keys come as the digests they are compared by."""

    def __init__(self, encryption: Encryption) -> None:
        """Made by the backend."""
        self._encryption = encryption

    def enqueue(self, tx: Transaction, groups: list[Sequence[NewJob]]) -> list[Enqueued | Exception]:
        """Store batches; a batch with a key of another request is refused by itself."""
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
            self.insert(tx, rows)
        return results

    def insert(self, tx: Transaction, jobs: list[NewJob]) -> None:
        """Store jobs with their first events, by one statement each."""
        log = Log.of(tx)
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
        for kind, at, job_id, fingerprint in read_json(tx.connection, "find_keys", {"keys": json.dumps(keys)}):
            owner, idempotency_key, task, unique_key = keys[at]
            key = (idempotency_key,) if kind == "idempotency" else (task, unique_key)
            known[kind, owner, *key] = (job_id, fingerprint)
        return known


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
