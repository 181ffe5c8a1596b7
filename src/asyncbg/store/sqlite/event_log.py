"""The event log inside a write transaction: numbers are assigned, events are stored and noted for the bus."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from asyncbg.core.event import Event, dump
from asyncbg.core.job import Lease
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.statement import SQL, insert_rows, read_json


class LogRow(NamedTuple):
    """The single row of the table ``log``: see ``read_log``."""

    epoch: str
    seq: int
    n: int
    purged: int
    reports: int


class JobRef(NamedTuple):
    """What an event says of its job: a row of ``event_refs``."""

    n: int
    id: str
    task: str
    batch: str
    owner: str
    attempt: int
    state: str


class EventLog:
    """The log of one transaction: the last numbers assigned, written back once before the commit."""

    __slots__ = ("_events", "_values", "n", "reports", "seq")

    def __init__(self, tx: Transaction) -> None:
        row = LogRow._make(tx.connection.execute(SQL["read_log"]).fetchone())
        self.seq, self.n, self.reports = row.seq, row.n, row.reports
        self._events = tx.events
        self._values: list[Any] = []

    @staticmethod
    def of(tx: Transaction) -> "EventLog":
        """Return the log of a transaction; its row is read once."""
        log = tx.finishers.get("log")
        if log is None:
            log = tx.finishers["log"] = EventLog(tx)
        return cast(EventLog, log)

    def __call__(self, tx: Transaction) -> None:
        """Write the last numbers back, at the end of the transaction."""
        tx.connection.execute(SQL["write_log"], (self.seq, self.n, self.reports))

    def next_report(self) -> int:
        """Return the number of a change of progress."""
        self.reports += 1
        return self.reports

    def append(
        self,
        n: int,
        event_type: str,
        at_ms: int,
        job: Lease | JobRef,
        attempt: int,
        data: str | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Assign the next number to an event of the job ``n`` and note it for the bus; :meth:`store` writes it."""
        self.seq = seq = self.seq + 1
        self._values.extend((seq, n, event_type, at_ms, attempt, data))
        self._events.append(Event(seq, event_type, at_ms, job.id, job.task, job.batch, job.owner, attempt, data, error))

    def store(self, tx: Transaction) -> None:
        """Write the events appended since the last call."""
        if self._values:
            insert_rows(tx, "insert_events", 6, self._values)
            self._values = []


def append_state_events(
    tx: Transaction, ns: list[int], event_type: str | None, now_ms: int, data: Mapping[str, Any] | None = None
) -> None:
    """Store one event for each of the jobs ``ns``; without a type it is named after the current state of the job."""
    log, text = EventLog.of(tx), dump(data) if data else None
    for row in read_json(tx.connection, "event_refs", {"ns": json.dumps(ns)}):
        job = JobRef._make(row)
        log.append(job.n, str(event_type or f"job.{job.state}"), now_ms, job, job.attempt, text)
    log.store(tx)
