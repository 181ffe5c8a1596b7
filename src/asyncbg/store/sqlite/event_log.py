"""The event log, as a write transaction adds to it: numbers given out, events stored and noted for the bus."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asyncbg.core.event import Event, dump
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.statement import SQL, insert_rows, read_json


class JobRef(NamedTuple):
    """What an event says of its job."""

    n: int
    id: str
    task: str
    batch: str
    owner: str
    attempt: int
    state: str


class Log:
    """The numbers given out in this transaction; written back once, at its end."""

    def __init__(self, tx: Transaction) -> None:
        """Read where the log is."""
        self.epoch, self.seq, self.n, _, reports = tx.connection.execute(SQL["read_log"]).fetchone()
        self.reports: int = reports

    def __call__(self, tx: Transaction) -> None:
        """Write back where it is now."""
        tx.connection.execute(SQL["write_log"], (self.seq, self.n, self.reports))

    def next_report(self) -> int:
        """The number of a change of progress."""
        self.reports += 1
        return self.reports

    @staticmethod
    def of(tx: Transaction) -> "Log":
        """The log of a transaction, read once."""
        log = tx.memo.get("log")
        if log is None:
            log = tx.memo["log"] = Log(tx)
        return log


def tell(tx: Transaction, told: Sequence[tuple[Any, ...]]) -> None:
    """Store events (n, type, at, job, attempt, data) and note them for the bus."""
    if not told:
        return
    log = Log.of(tx)
    seq = log.seq
    values: list[Any] = []
    for n, event_type, at_ms, job, attempt, data in told:
        seq += 1
        values += (seq, n, event_type, at_ms, attempt, data)
        tx.notes.append(Event(seq, event_type, at_ms, job.id, job.task, job.batch, job.owner, attempt, data))
    log.seq = seq
    insert_rows(tx, "insert_events", 6, values)


def tell_refs(
    tx: Transaction, ns: list[int], event_type: str | None, now_ms: int, data: Mapping[str, Any] | None = None
) -> None:
    """Store one event for each job; without a type it is named after the state the job is in now."""
    refs = [JobRef(*row) for row in read_json(tx.connection, "event_refs", {"ns": json.dumps(ns)})]
    text = dump(data) if data else None
    tell(tx, [(ref.n, str(event_type or f"job.{ref.state}"), now_ms, ref, ref.attempt, text) for ref in refs])
