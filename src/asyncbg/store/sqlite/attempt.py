"""One attempt at a job, from its claim to its settlement: every write names the lease, and needs it to hold."""

import heapq
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, assert_never

from asyncbg.core.clock import Clock
from asyncbg.core.event import Event, EventType, dump
from asyncbg.core.ids import random_token
from asyncbg.core.job import Cancelled, Done, Failed, JobFailure, JobState, Lease, Released, Retry
from asyncbg.privacy.encryption import Encryption
from asyncbg.store.base import Claimed, Settlement
from asyncbg.store.encrypted import decrypt_lease, encrypt_settlement
from asyncbg.store.sqlite.batch import queue, release_next
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import Log, tell
from asyncbg.store.sqlite.process_slot import ProcessSlot
from asyncbg.store.sqlite.statement import SQL, insert_rows, read_json

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


class AttemptLanes:
    """What the jobs that run at one place need written."""

    def __init__(self, clock: Clock, encryption: Encryption, slot: ProcessSlot) -> None:
        """Made by the backend."""
        self._clock = clock
        self._encryption = encryption
        self._slot = slot

    def claim(self, tx: Transaction, requests: list[tuple[int, float, Collection[str]]]) -> list[Claimed]:
        """Take up to so many queued jobs, for so long, leaving some tasks to others."""
        return [self.claim_one(tx, *request) for request in requests]

    def claim_one(self, tx: Transaction, limit: int, lease_s: float, skip: Collection[str]) -> Claimed:
        """Promote what is due, then claim: state, attempt, lease end and a random token are set."""
        now_ms = self._clock.now_ms()
        due = read_json(tx.connection, "find_due", {"now_ms": now_ms})
        if due:
            queue(tx, due, now_ms)
        found, next_due_ms = self._find_ready(tx, limit, skip)
        token = random_token()
        leases = [decrypt_lease(Lease._make([*row, token]), self._encryption) for row in json.loads(found)]
        if leases:
            tx.connection.execute(
                SQL["claim_jobs"],
                {
                    "ns": json.dumps([lease.n for lease in leases]),
                    "token": token,
                    "lease_until": self._clock.monotonic_ms() + int(lease_s * 1000),
                    "place": self._slot.name,
                    "now_ms": now_ms,
                },
            )
            tell(tx, [(lease.n, _JOB_STARTED, now_ms, lease, lease.attempt, None) for lease in leases])
        return Claimed(leases, next_due_ms)

    def _find_ready(self, tx: Transaction, limit: int, skip: Collection[str]) -> tuple[str, int | None]:
        """The next jobs to run, as JSON, and when the next scheduled one is due."""
        if not skip:
            statement, values = _READ_READY, {"place": self._slot.name, "limit": limit}
        else:
            statement, values = _READ_CHOSEN, {"ns": json.dumps(self._find_known(tx, limit, skip))}
        return tx.connection.execute(statement, values).fetchone()  # type: ignore[no-any-return]

    def _find_known(self, tx: Transaction, limit: int, skip: Collection[str]) -> list[int]:
        """The next jobs of every task but some: the first of each task, merged."""
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
        pairs = json.dumps([(item.lease.n, item.lease.token) for item in items])
        found, any_waiting = tx.connection.execute(SQL["live_leases"], {"pairs": pairs}).fetchone()
        live = {(n, token): (cancel_reason, progress) for n, token, cancel_reason, progress in json.loads(found)}
        values: list[Any] = []
        told: list[tuple[Any, ...]] = []
        raised: dict[int, BaseException | None] = {}
        ended: list[tuple[str, bool]] = []
        results = []
        for item in items:
            lease = item.lease
            held = (lease.n, lease.token)
            results.append(held in live)
            if held not in live:
                continue
            if self._encryption.is_on:
                item = encrypt_settlement(item, self._encryption)  # noqa: PLW2901 - from here on as it is stored
            cancel_reason, progress = live.pop(held)
            row, event_type, data = _verdict(item, cancel_reason, now_ms)
            is_news = item.progress is not None and item.progress != progress
            values += (*row, self._note_progress(tx, lease, item.progress, now_ms) if is_news else None)
            if isinstance(item.outcome, _RAISED):
                self._keep_failed(tx, lease, item.outcome.error)
                raised[len(told)] = item.outcome.error.cause
            told.append((lease.n, event_type, now_ms, lease, lease.attempt, data))
            if any_waiting and row[3] is not None:
                ended.append((lease.batch, bool(lease.stop_on_failure) and row[1] != _SUCCEEDED))
        if values:
            insert_rows(tx, "settle_jobs", 11, values)
            tell(tx, told)
            for index, error in raised.items():
                tx.notes[index - len(told)] = tx.notes[index - len(told)]._replace(error=error)
            release_next(tx, ended, now_ms)
        return results

    def _keep_failed(self, tx: Transaction, lease: Lease, error: JobFailure) -> None:
        traceback = error.traceback and self._encryption.encrypt(error.traceback, lease.id, "traceback")
        key = {"n": lease.n, "attempt": lease.attempt}
        tx.connection.execute(SQL["keep_failed"], {**key, "place": self._slot.name, "traceback": traceback})
        if lease.attempt > _MOST_FAILED:
            tx.connection.execute(SQL["forget_earlier_failed"], {**key, "most": _MOST_FAILED})

    def renew(self, tx: Transaction, items: list[float]) -> list[Mapping[str, str | None]]:
        """Prolong the leases of this place; its running jobs, with the reason where a cancel is requested."""
        lease_until = self._clock.monotonic_ms() + int(max(items) * 1000)
        tx.connection.execute(SQL["renew_leases"], {"lease_until": lease_until, "place": self._slot.name})
        running = {row[0]: row[2] for row in read_json(tx.connection, "running_here", {"place": self._slot.name})}
        return [running] * len(items)

    def report(self, tx: Transaction, items: list[tuple[Lease, str]]) -> list[bool]:
        """Keep the latest progress of each job, and note it for the bus. False: the lease had lapsed."""
        live = self._live(tx, [lease for lease, _ in items])
        latest = {lease.n: (lease, progress) for lease, progress in items if (lease.n, lease.token) in live}
        if latest:
            now_ms = self._clock.now_ms()
            report = max(self._note_progress(tx, lease, progress, now_ms) for lease, progress in latest.values())
            reports = json.dumps([(lease.n, lease.token, progress) for lease, progress in latest.values()])
            tx.connection.execute(SQL["report_progress"], {"reports": reports, "report": report})
        return [(lease.n, lease.token) in live for lease, _ in items]

    def _note_progress(self, tx: Transaction, lease: Lease, progress: str | None, now_ms: int) -> int:
        """Note a job's new progress for the bus; returns the number of the report, for those who follow elsewhere."""
        tx.notes.append(
            Event(0, _JOB_PROGRESS, now_ms, lease.id, lease.task, lease.batch, lease.owner, lease.attempt, progress)
        )
        return Log.of(tx).next_report()

    def record(self, tx: Transaction, items: list[tuple[Lease, str, str]]) -> list[bool]:
        """Store events of the tasks' own. False: the lease had lapsed."""
        live = self._live(tx, [lease for lease, _, _ in items])
        now_ms = self._clock.now_ms()
        tell(
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
        return {(n, token) for n, token, _, _ in found}


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
