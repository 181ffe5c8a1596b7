"""One attempt at a job, from its claim to its settlement: every write names the lease, which must still hold."""

import heapq
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, assert_never

from asyncbg.core.clock import Clock
from asyncbg.core.event import Event, EventType, dump
from asyncbg.core.ids import random_token
from asyncbg.core.job import Cancelled, Done, Failed, JobFailure, JobState, Lease, Released, Retry
from asyncbg.privacy.encryption import Encryption
from asyncbg.store.base import Claimed, Settlement
from asyncbg.store.encrypted import decrypt_lease, encrypt_settlement
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import EventLog
from asyncbg.store.sqlite.process_slot import ProcessSlot
from asyncbg.store.sqlite.statement import SQL, insert_rows, read_json
from asyncbg.store.sqlite.transition import EndedJob, queue, release_next

# Plain strings: an enum's ``value`` costs a call each time, and a job needs a dozen.
_QUEUED, _SCHEDULED = JobState.QUEUED.value, JobState.SCHEDULED.value
_SUCCEEDED, _FAILED, _CANCELLED = JobState.SUCCEEDED.value, JobState.FAILED.value, JobState.CANCELLED.value
_JOB_QUEUED, _JOB_STARTED, _JOB_RETRYING = EventType.QUEUED.value, EventType.STARTED.value, EventType.RETRYING.value
_JOB_SUCCEEDED, _JOB_FAILED = EventType.SUCCEEDED.value, EventType.FAILED.value
_JOB_CANCELLED, _JOB_PROGRESS = EventType.CANCELLED.value, EventType.PROGRESS.value

_READ_READY = SQL["read_ready"].replace("{ready}", SQL["find_ready"])
_READ_CHOSEN = SQL["read_ready"].replace("{ready}", SQL["chosen"])

_MOST_FAILED = 20
_RAISED = (Failed, Retry)


class ClaimRequest(NamedTuple):
    """How many jobs to claim, for how long, and which tasks to leave to other processes."""

    limit: int
    lease_s: float
    skip: Collection[str]


class ProgressReport(NamedTuple):
    """The latest progress of a running job, as JSON."""

    lease: Lease
    progress: str


class PublishedEvent(NamedTuple):
    """An event that a task publishes; ``data`` is JSON."""

    lease: Lease
    type: str
    data: str


class LiveLease(NamedTuple):
    """A lease that still holds, with what was asked and reported meanwhile: a row of ``live_leases``."""

    n: int
    token: int
    cancel_reason: str | None
    progress: str | None


class SettledRow(NamedTuple):
    """The columns of ``settle_jobs``, in its order."""

    n: int
    state: str
    run_at: int | None
    finished_at: int | None
    result: str | None
    error_type: str | None
    error_message: str | None
    progress: str | None
    attempt: int
    cancel_reason: str | None
    reported: int | None


class AttemptLanes:
    """Claims jobs for one process and writes what their attempts report."""

    def __init__(self, clock: Clock, encryption: Encryption, slot: ProcessSlot) -> None:
        self._clock = clock
        self._encryption = encryption
        self._slot = slot

    def claim(self, tx: Transaction, requests: list[ClaimRequest]) -> list[Claimed]:
        """Claim queued jobs, as many as each request asks for."""
        return [self.claim_one(tx, request) for request in requests]

    def claim_one(self, tx: Transaction, request: ClaimRequest) -> Claimed:
        """Promote jobs that are due, then claim: state, attempt, lease end and a random token are set."""
        now_ms = self._clock.now_ms()
        due = read_json(tx.connection, "find_due", {"now_ms": now_ms})
        if due:
            queue(tx, due, now_ms)
        found, next_due_ms = self._find_ready(tx, request.limit, request.skip)
        if not isinstance(next_due_ms, int | None):
            raise TypeError("a stored job is due at a time that is no number")
        token = random_token()
        leases = [decrypt_lease(Lease._make([*row, token]), self._encryption) for row in json.loads(found)]
        if leases:
            tx.connection.execute(
                SQL["claim_jobs"],
                {
                    "ns": json.dumps([lease.n for lease in leases]),
                    "token": token,
                    "lease_until": self._clock.monotonic_ms() + int(request.lease_s * 1000),
                    "place": self._slot.name,
                    "now_ms": now_ms,
                },
            )
            log = EventLog.of(tx)
            for lease in leases:
                log.append(lease.n, _JOB_STARTED, now_ms, lease, lease.attempt)
            log.store(tx)
        return Claimed(leases, next_due_ms)

    def _find_ready(self, tx: Transaction, limit: int, skip: Collection[str]) -> tuple[str, int | None]:
        """Return the next jobs to run, as JSON, and when the next scheduled job is due."""
        values: dict[str, Any]
        if not skip:
            statement, values = _READ_READY, {"place": self._slot.name, "limit": limit}
        else:
            statement, values = _READ_CHOSEN, {"ns": json.dumps(self._find_known(tx, limit, skip))}
        found, next_due_ms = tx.connection.execute(statement, values).fetchone()
        return found, next_due_ms

    def _find_known(self, tx: Transaction, limit: int, skip: Collection[str]) -> list[int]:
        """Return the next jobs of all tasks but ``skip``: the first jobs of each task, merged by priority."""
        values = {"place": self._slot.name, "limit": limit}
        found = read_json(tx.connection, "find_ready_here", values)
        for task in read_json(tx.connection, "find_ready_tasks", {"skip": json.dumps(sorted(skip))}):
            found += read_json(tx.connection, "find_ready_of_task", {"task": task, "limit": limit})
        return [n for _, n in heapq.nsmallest(limit, found)]

    def settle(self, tx: Transaction, groups: list[Sequence[Settlement]]) -> list[Sequence[bool]]:
        """End attempts and release the next jobs of their batches. False: the lease had lapsed."""
        held = iter(self._settle_all(tx, [item for items in groups for item in items]))
        return [[next(held) for _ in items] for items in groups]

    def _settle_all(self, tx: Transaction, items: list[Settlement]) -> list[bool]:
        now_ms = self._clock.now_ms()
        live, any_waiting = self._live_leases(tx, [item.lease for item in items])
        log = EventLog.of(tx)
        values: list[Any] = []
        ended: list[EndedJob] = []
        results = []
        for item in items:
            lease, outcome = item.lease, item.outcome
            held = live.pop((lease.n, lease.token), None)
            results.append(held is not None)
            if held is None:
                continue
            if self._encryption.is_on:
                item = encrypt_settlement(item, self._encryption)  # noqa: PLW2901 - from here on as it is stored
            is_news = item.progress is not None and item.progress != held.progress
            reported = self._note_progress(tx, lease, item.progress, now_ms) if is_news else None
            row, event_type, data = _verdict(item, held.cancel_reason, now_ms, reported)
            values += row
            error = None
            if isinstance(outcome, _RAISED):
                self._keep_failed(tx, lease, outcome.error)
                error = outcome.error.cause
            log.append(lease.n, event_type, now_ms, lease, lease.attempt, data, error)
            if any_waiting and row.finished_at is not None:
                ended.append(EndedJob(lease.batch, bool(lease.stop_on_failure) and row.state != _SUCCEEDED))
        if values:
            insert_rows(tx, "settle_jobs", 11, values)
            log.store(tx)
            release_next(tx, ended, now_ms)
        return results

    def _keep_failed(self, tx: Transaction, lease: Lease, failure: JobFailure) -> None:
        traceback = failure.traceback and self._encryption.encrypt(failure.traceback, lease.id, "traceback")
        key = {"n": lease.n, "attempt": lease.attempt}
        tx.connection.execute(SQL["keep_failed"], {**key, "place": self._slot.name, "traceback": traceback})
        if lease.attempt > _MOST_FAILED:
            tx.connection.execute(SQL["forget_earlier_failed"], {**key, "most": _MOST_FAILED})

    def renew(self, tx: Transaction, items: list[float]) -> list[Mapping[str, str | None]]:
        """Renew the leases of this process. Return its running jobs: id → reason where a cancel is requested."""
        lease_until = self._clock.monotonic_ms() + int(max(items) * 1000)
        tx.connection.execute(SQL["renew_leases"], {"lease_until": lease_until, "place": self._slot.name})
        running: Mapping[str, str | None] = read_json(tx.connection, "running_here", {"place": self._slot.name})
        return [running] * len(items)

    def report(self, tx: Transaction, items: list[ProgressReport]) -> list[bool]:
        """Keep the latest progress of each job, and note it for the bus. False: the lease had lapsed."""
        live, _ = self._live_leases(tx, [item.lease for item in items])
        latest = {item.lease.n: item for item in items if (item.lease.n, item.lease.token) in live}
        if latest:
            now_ms = self._clock.now_ms()
            report = max(self._note_progress(tx, lease, progress, now_ms) for lease, progress in latest.values())
            reports = json.dumps([(lease.n, lease.token, progress) for lease, progress in latest.values()])
            tx.connection.execute(SQL["report_progress"], {"reports": reports, "report": report})
        return [(item.lease.n, item.lease.token) in live for item in items]

    def _note_progress(self, tx: Transaction, lease: Lease, progress: str | None, now_ms: int) -> int:
        """Note new progress for the bus. Return the number of the report, which other processes follow."""
        tx.events.append(
            Event(0, _JOB_PROGRESS, now_ms, lease.id, lease.task, lease.batch, lease.owner, lease.attempt, progress)
        )
        return EventLog.of(tx).next_report()

    def record(self, tx: Transaction, items: list[PublishedEvent]) -> list[bool]:
        """Store events that tasks publish. False: the lease had lapsed."""
        live, _ = self._live_leases(tx, [item.lease for item in items])
        now_ms, log = self._clock.now_ms(), EventLog.of(tx)
        for lease, event_type, data in items:
            if (lease.n, lease.token) in live:
                log.append(lease.n, event_type, now_ms, lease, lease.attempt, data)
        log.store(tx)
        return [(item.lease.n, item.lease.token) in live for item in items]

    def _live_leases(self, tx: Transaction, leases: list[Lease]) -> tuple[dict[tuple[int, int], LiveLease], bool]:
        """Return those leases that still hold, by number and token, and whether any job waits for its batch."""
        pairs = json.dumps([(lease.n, lease.token) for lease in leases])
        found, any_waiting = tx.connection.execute(SQL["live_leases"], {"pairs": pairs}).fetchone()
        return {(row[0], row[1]): LiveLease._make(row) for row in json.loads(found)}, bool(any_waiting)


def _verdict(
    item: Settlement, cancel_reason: str | None, now_ms: int, reported: int | None
) -> tuple[SettledRow, str, str | None]:
    """Return the row of ``settle_jobs``, the event type and its data for one ended attempt."""
    lease, outcome = item.lease, item.outcome
    if cancel_reason is not None and isinstance(outcome, Retry | Released):
        outcome = Cancelled(cancel_reason)
    n, attempt, progress = lease.n, lease.attempt, item.progress
    match outcome:
        case Done(result):
            row = SettledRow(n, _SUCCEEDED, None, now_ms, result, None, None, progress, attempt, None, reported)
            return row, _JOB_SUCCEEDED, None
        case Retry(error, run_at_ms):
            kind, text = error.type, error.message
            row = SettledRow(n, _SCHEDULED, run_at_ms, None, None, kind, text, progress, attempt, None, reported)
            data = {"error": error.as_dict(), "delay_s": max(0, run_at_ms - now_ms) / 1000}
            return row, _JOB_RETRYING, dump(data)
        case Failed(error):
            kind, text = error.type, error.message
            row = SettledRow(n, _FAILED, None, now_ms, None, kind, text, progress, attempt, None, reported)
            return row, _JOB_FAILED, dump({"error": error.as_dict()})
        case Cancelled(reason):
            row = SettledRow(n, _CANCELLED, None, now_ms, None, None, None, progress, attempt, reason, reported)
            return row, _JOB_CANCELLED, dump({"reason": reason})
        case Released(reason):
            row = SettledRow(n, _QUEUED, None, None, None, None, None, progress, attempt - 1, None, reported)
            return row, _JOB_QUEUED, dump({"reason": reason})
        case _:
            assert_never(outcome)
