"""Moves of jobs that do not run: released with their batch, queued, cancelled, retried; each with its event."""

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from asyncbg.core.clock import Clock
from asyncbg.core.event import EventType
from asyncbg.core.job import FINAL_STATES, JobState
from asyncbg.errors import JobNotFoundError, JobStateError
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import append_state_events
from asyncbg.store.sqlite.read import find_record
from asyncbg.store.sqlite.statement import SQL, read_json

_EARLIER_FAILED = "an earlier job of the batch did not succeed"


class EndedJob(NamedTuple):
    """The batch of a job that became final, and whether the batch stops there."""

    batch: str
    stops: bool


def release_next(tx: Transaction, ended: Sequence[EndedJob], now_ms: int) -> None:
    """Release the next job of each batch, or cancel the rest where the batch stops on failure."""
    stopped, continued = [job.batch for job in ended if job.stops], [job.batch for job in ended if not job.stops]
    if stopped:
        cancel_open(tx, _waiting_in(tx, stopped), _EARLIER_FAILED, now_ms)
    if continued:
        queue(tx, read_json(tx.connection, "find_next_in_batch", {"batches": json.dumps(continued)}), now_ms)


def _waiting_in(tx: Transaction, batches: list[str]) -> list[int]:
    found: list[int] = read_json(tx.connection, "find_waiting_of_batches", {"batches": json.dumps(batches)})
    return found


def queue(tx: Transaction, ns: list[int], now_ms: int) -> None:
    """Queue jobs, or schedule them where they are due later."""
    if not ns:
        return
    tx.connection.execute(SQL["queue_jobs"], {"ns": json.dumps(ns), "now_ms": now_ms})
    append_state_events(tx, ns, None, now_ms)


def cancel_open(tx: Transaction, ns: list[int], reason: str, now_ms: int) -> None:
    """Cancel jobs that do not run."""
    if not ns:
        return
    tx.connection.execute(SQL["cancel_jobs"], {"ns": json.dumps(ns), "now_ms": now_ms, "reason": reason})
    append_state_events(tx, ns, EventType.CANCELLED, now_ms, {"reason": reason})


class CancelRequest(NamedTuple):
    """Which job to cancel, and why."""

    job_id: str
    reason: str


class ControlLanes:
    """Cancel and retry on request. Each refuses a job whose state forbids it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def cancel(self, tx: Transaction, items: list[CancelRequest]) -> list[JobState | Exception]:
        """Cancel jobs; for a running job the cancel is requested of the process that runs it."""
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
        now_ms = self._clock.now_ms()
        cancel_open(tx, [record.n], reason, now_ms)
        if tx.connection.execute(SQL["stops_on_failure"], (record.n,)).fetchone()[0]:
            later = [n for n in _waiting_in(tx, [record.batch]) if n > record.n]
            cancel_open(tx, later, _EARLIER_FAILED, now_ms)
        release_next(tx, [EndedJob(record.batch, stops=False)], now_ms)
        return JobState.CANCELLED

    def retry(self, tx: Transaction, items: list[str]) -> list[JobState | Exception]:
        """Queue final jobs again; their history is kept."""
        return [self._retry_one(tx, job_id) for job_id in items]

    def _retry_one(self, tx: Transaction, job_id: str) -> JobState | Exception:
        record = find_record(tx.connection, "id = ?", job_id)
        if record is None:
            return JobNotFoundError(job_id)
        if record.state not in FINAL_STATES:
            return JobStateError(job_id, record.state, "retry")
        if not record.durable:
            return JobStateError(job_id, f"{record.state} and not durable: its function is gone", "retry")
        now_ms = self._clock.now_ms()
        try:
            tx.connection.execute(SQL["retry_job"], {"n": record.n, "now_ms": now_ms})
        except sqlite3.IntegrityError:
            return JobStateError(job_id, f"{record.state}, and another job of its key is open", "retry")
        append_state_events(tx, [record.n], EventType.QUEUED, now_ms, {"reason": "retried"})
        return JobState.QUEUED
