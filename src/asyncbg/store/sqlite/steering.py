"""What a person asks of a job: cancel it, or run it again."""

import json
import sqlite3

from asyncbg.core.clock import Clock
from asyncbg.core.event import EventType
from asyncbg.core.job import FINAL_STATES, JobState
from asyncbg.errors import JobNotFoundError, JobStateError
from asyncbg.store.sqlite.batch import EARLIER_FAILED, cancel_open, release_next
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import tell_refs
from asyncbg.store.sqlite.read import find_record
from asyncbg.store.sqlite.statement import SQL, read_json


class SteeringLanes:
    """Each refuses a job whose state forbids it."""

    def __init__(self, clock: Clock) -> None:
        """Made by the backend."""
        self._clock = clock

    def cancel(self, tx: Transaction, items: list[tuple[str, str]]) -> list[JobState | Exception]:
        """Cancel jobs; of those that run it is requested of their place."""
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
            waiting = read_json(tx.connection, "find_waiting_of_batches", {"batches": json.dumps([record.batch])})
            cancel_open(tx, [n for n in waiting if n > record.n], EARLIER_FAILED, now_ms)
        release_next(tx, [(record.batch, False)], now_ms)
        return JobState.CANCELLED

    def retry(self, tx: Transaction, items: list[str]) -> list[JobState | Exception]:
        """Queue final jobs again, their history kept."""
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
        tell_refs(tx, [record.n], EventType.QUEUED, now_ms, {"reason": "retried"})
        return JobState.QUEUED
