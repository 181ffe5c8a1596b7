"""The jobs of a batch wait for one another: what ends one releases, or cancels, the next."""

import json
from collections.abc import Iterable

from asyncbg.core.event import EventType
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import tell_refs
from asyncbg.store.sqlite.statement import SQL, read_json

EARLIER_FAILED = "an earlier job of the batch did not succeed"


def release_next(tx: Transaction, ended: Iterable[tuple[str, bool]], now_ms: int) -> None:
    """Let the next job of each batch go on, or cancel the rest where the batch stops on failure."""
    stopped = [batch for batch, stops in ended if stops]
    if stopped:
        cancel_open(
            tx, read_json(tx.connection, "find_waiting_of_batches", {"batches": json.dumps(stopped)}),
            EARLIER_FAILED, now_ms,
        )  # fmt: skip
    going_on = [batch for batch, stops in ended if not stops]
    if going_on:
        queue(tx, read_json(tx.connection, "find_next_in_batch", {"batches": json.dumps(going_on)}), now_ms)


def queue(tx: Transaction, ns: list[int], now_ms: int) -> None:
    """Make jobs ready, or scheduled where they are due later."""
    if not ns:
        return
    tx.connection.execute(SQL["queue_jobs"], {"ns": json.dumps(ns), "now_ms": now_ms})
    tell_refs(tx, ns, None, now_ms)


def cancel_open(tx: Transaction, ns: list[int], reason: str, now_ms: int) -> None:
    """Cancel jobs that do not run."""
    if not ns:
        return
    tx.connection.execute(SQL["cancel_jobs"], {"ns": json.dumps(ns), "now_ms": now_ms, "reason": reason})
    tell_refs(tx, ns, EventType.CANCELLED, now_ms, {"reason": reason})
