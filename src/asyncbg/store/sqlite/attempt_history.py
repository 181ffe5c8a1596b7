"""The attempts of a job, read from its events and from the rows of the attempts that failed."""

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from asyncbg.core.event import EventType
from asyncbg.core.job import Attempt, JobFailure
from asyncbg.privacy.encryption import Encryption
from asyncbg.store.sqlite.rescue import WORKER_LOST
from asyncbg.store.sqlite.statement import SQL, read_json

_MOST_EVENTS = 400
_OUTCOMES = {
    EventType.SUCCEEDED.value: "succeeded",
    EventType.RETRYING.value: "failed",
    EventType.FAILED.value: "failed",
    EventType.CANCELLED.value: "cancelled",
}


class AttemptEvent(NamedTuple):
    """An event that begins or ends an attempt: a row of ``find_attempt_events``."""

    type: str
    at_ms: int
    attempt: int
    data: str | None


class FailedAttempt(NamedTuple):
    """Where an attempt failed: a row of ``find_failed``; ``traceback`` as it is stored."""

    attempt: int
    place: str
    traceback: str | None


def find_attempts(connection: sqlite3.Connection, job_id: str, encryption: Encryption) -> Sequence[Attempt]:
    """Return the latest attempts, oldest first; none where there is no such job."""
    row = connection.execute(SQL["find_job_of_attempts"], {"id": job_id}).fetchone()
    if row is None:
        return ()
    n, place = row
    failed = {
        found.attempt: found for found in map(FailedAttempt._make, read_json(connection, "find_failed", {"n": n}))
    }
    events = read_json(connection, "find_attempt_events", {"n": n, "most": _MOST_EVENTS})
    pairs = _pairs([AttemptEvent._make(event) for event in events])
    attempts: list[Attempt] = []
    for started, ended in pairs:
        known = failed.get(started.attempt)
        worker = known.place if known else place if started is pairs[-1][0] else None
        stored = known.traceback if known else None
        traceback = None if stored is None else encryption.decrypt_or_explain(stored, job_id, "traceback")
        attempts.append(_attempt(started, ended, worker, traceback))
    return attempts


def _pairs(events: Sequence[AttemptEvent]) -> list[tuple[AttemptEvent, AttemptEvent | None]]:
    """Return each start with the event that ended it; None while the attempt runs."""
    pairs: list[tuple[AttemptEvent, AttemptEvent | None]] = []
    for event in events:
        if event.type == EventType.STARTED.value:
            pairs.append((event, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], event)
    return pairs


def _attempt(started: AttemptEvent, ended: AttemptEvent | None, worker: str | None, traceback: str | None) -> Attempt:
    if ended is None:
        return Attempt(number=started.attempt, worker=worker, started_at_ms=started.at_ms)
    data = json.loads(ended.data) if ended.data else {}
    error = data.get("error")
    return Attempt(
        number=started.attempt, worker=worker, started_at_ms=started.at_ms, ended_at_ms=ended.at_ms,
        outcome=_OUTCOMES.get(ended.type) or ("lost" if data.get("reason") == WORKER_LOST else "released"),
        error=JobFailure(type=error["type"], message=error["message"]) if error else None, traceback=traceback,
    )  # fmt: skip
