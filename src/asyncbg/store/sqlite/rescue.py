"""Recovery: jobs of dead processes are queued again or ended, jobs whose rows cannot be read are failed."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncbg.core.clock import Clock
from asyncbg.core.event import EventType
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import append_state_events
from asyncbg.store.sqlite.process_slot import ProcessSlot
from asyncbg.store.sqlite.statement import SQL, read_json
from asyncbg.store.sqlite.transition import EndedJob, release_next

SLICE = 1_000
"""Jobs bound to dead processes that one commit ends; running jobs are limited by the concurrency of a process."""

POISON_AFTER = 3
"""A job whose process crashed this often is failed instead of run again."""

WORKER_LOST = "its worker was lost"
"""Why a job of a dead process is queued again."""


class Fate(NamedTuple):
    """The new state of a lost job, or the type of its error; and the reason, or the message."""

    state_or_error: str
    text: str


_LOST = Fate("NotDurableError", "its function existed only in a process that ended; pass a module-level function")
_INTERRUPTED = Fate("JobInterruptedError", "its process ended while it ran, and it may run at most once")
_POISON = Fate("PoisonError", f"its worker process crashed {POISON_AFTER} times; fix the task, then retry it")
_UNREADABLE = Fate("UnreadableRowError", "a value in its row has another type than its column; see the server log")


class LostJob(NamedTuple):
    """A running job whose process is dead or silent: a row of ``find_lost``."""

    n: int
    at_most_once: int
    durable: int
    crashes: int
    cancel_reason: str | None
    batch: str
    stop_on_failure: int


class BoundJob(NamedTuple):
    """A job that does not run and whose function lived in a dead process only: a row of ``find_bound``."""

    n: int
    batch: str
    stop_on_failure: int


class RescueLane:
    """Finds lost jobs by dead processes and lapsed leases."""

    def __init__(self, clock: Clock, slot: ProcessSlot) -> None:
        self._clock = clock
        self._slot = slot

    def rescue(self, tx: Transaction, items: list[list[str]]) -> list[int]:
        """Queue lost jobs again, or end them. Return how many there were; ``SLICE`` or more: ask again.

        An item names slots whose processes are known to be dead. The locks of the other slots are tried here, in the
        transaction: a process that acquires a slot from now on cannot claim a job before this transaction has ended.
        """
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        busy = read_json(tx.connection, "busy_places", {})
        gone = json.dumps(sorted({*(name for item in items for name in item), *self._slot.gone(busy)}))
        silent = json.dumps(self._slot.silent(busy, monotonic_ms))
        found = read_json(tx.connection, "find_lost", {"gone": gone, "monotonic_ms": monotonic_ms, "silent": silent})
        lost = [LostJob._make(row) for row in found]
        bound = [BoundJob._make(row) for row in read_json(tx.connection, "find_bound", {"gone": gone, "limit": SLICE})]
        fates: dict[Fate, list[int]] = {}
        ended: list[EndedJob] = []
        jobs: list[LostJob | BoundJob] = [*lost, *bound]
        for job in jobs:
            fate = _fate(job) if isinstance(job, LostJob) else _LOST
            fates.setdefault(fate, []).append(job.n)
            if fate.state_or_error != "queued":
                ended.append(EndedJob(job.batch, bool(job.stop_on_failure)))
        for fate, ns in fates.items():
            self._apply_fate(tx, fate, ns, now_ms)
        release_next(tx, ended, now_ms)
        return [len(lost) + len(bound)] * len(items)

    def _apply_fate(self, tx: Transaction, fate: Fate, ns: list[int], now_ms: int) -> None:
        text = json.dumps(ns)
        match fate:
            case ("queued", reason):
                tx.connection.execute(SQL["requeue_lost"], {"ns": text})
                append_state_events(tx, ns, EventType.QUEUED, now_ms, {"reason": reason})
            case ("cancelled", reason):
                tx.connection.execute(SQL["cancel_lost"], {"ns": text, "now_ms": now_ms})
                append_state_events(tx, ns, EventType.CANCELLED, now_ms, {"reason": reason})
            case (error_type, message):
                values = {"ns": text, "now_ms": now_ms, "type": error_type, "message": message}
                tx.connection.execute(SQL["fail_lost"], values)
                append_state_events(tx, ns, EventType.FAILED, now_ms, _error_data(fate))


def _fate(job: LostJob) -> Fate:
    """Decide about a running job whose process is gone."""
    if job.cancel_reason is not None:
        return Fate("cancelled", job.cancel_reason)
    if not job.durable:
        return _LOST
    if job.at_most_once:
        return _INTERRUPTED
    if job.crashes + 1 >= POISON_AFTER:
        return _POISON
    return Fate("queued", WORKER_LOST)


def _error_data(fate: Fate) -> dict[str, Any]:
    return {"error": {"type": fate.state_or_error, "message": fate.text}}


class QuarantineLane:
    """Fails open jobs whose rows another program has damaged, so that the others can be claimed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def quarantine(self, tx: Transaction, items: list[None]) -> list[list[str]]:
        """Fail those jobs and replace their unreadable values. Return their ids."""
        found = [self._fail(tx, *row) for row in _unreadable(tx.connection)]
        return [found] * len(items)

    def _fail(self, tx: Transaction, n: int, texts: Sequence[str | None]) -> str:
        now_ms = self._clock.now_ms()
        tx.connection.execute(SQL["repair_job"], (*texts, n))
        values = {"n": n, "now_ms": now_ms, "type": _UNREADABLE.state_or_error, "message": _UNREADABLE.text}
        tx.connection.execute(SQL["fail_unreadable"], values)
        append_state_events(tx, [n], EventType.FAILED, now_ms, _error_data(_UNREADABLE))
        batch, stops = tx.connection.execute(SQL["batch_of"], (n,)).fetchone()
        release_next(tx, [EndedJob(batch, bool(stops))], now_ms)
        return str(texts[0])


def _unreadable(connection: sqlite3.Connection) -> list[tuple[int, list[str | None]]]:
    """Return the number and the values, as texts, of each open row with a value of another type than its column.

    Read as bytes, since SQLite's text conversion fails on such values.
    """
    found = []
    for n, mistyped, *values in connection.execute(SQL["find_open_values"]):
        texts = [None if value is None else bytes(value).decode("utf-8", "replace") for value in values]
        if mistyped or any(
            text is not None and text.encode() != value for text, value in zip(texts, values, strict=True)
        ):
            found.append((n, texts))
    return found
