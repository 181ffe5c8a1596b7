"""The attempts of a job, as its events and the rows of those that failed tell them."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

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


def find_attempts(connection: sqlite3.Connection, job_id: str, encryption: Encryption) -> Sequence[Attempt]:
    """The latest attempts, oldest first; none where there is no such job."""
    row = connection.execute(SQL["find_job_of_attempts"], {"id": job_id}).fetchone()
    if row is None:
        return ()
    n, place = row
    failed = {attempt: rest for attempt, *rest in read_json(connection, "find_failed", {"n": n})}
    events = read_json(connection, "find_attempt_events", {"n": n, "most": _MOST_EVENTS})
    pairs = _pairs(events)
    attempts: list[Attempt] = []
    for begun, ended in pairs:
        known = (place if begun is pairs[-1][0] else None, None)
        ran_at, traceback = failed.get(begun[2], known)
        shown = None if traceback is None else encryption.decrypt_or_explain(traceback, job_id, "traceback")
        attempts.append(_attempt(begun, ended, ran_at, shown))
    return attempts


def _pairs(events: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each start, and the event that ended it."""
    pairs: list[tuple[Any, Any]] = []
    for event in events:
        if event[0] == EventType.STARTED.value:
            pairs.append((event, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], event)
    return pairs


def _attempt(begun: Any, ended: Any, place: str | None, traceback: str | None) -> Attempt:
    _, started_at_ms, number, _ = begun
    if ended is None:
        return Attempt(number=number, worker=place, started_at_ms=started_at_ms)
    kind, ended_at_ms, _, text = ended
    data = json.loads(text) if text else {}
    error = data.get("error")
    return Attempt(
        number=number, worker=place, started_at_ms=started_at_ms, ended_at_ms=ended_at_ms,
        outcome=_OUTCOMES.get(kind) or ("lost" if data.get("reason") == WORKER_LOST else "released"),
        error=JobFailure(type=error["type"], message=error["message"]) if error else None, traceback=traceback,
    )  # fmt: skip
