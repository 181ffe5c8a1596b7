"""The slots of schedules: which one was fired last, by whichever process, and the job of the next."""

import json
import sqlite3
from collections.abc import Collection, Mapping

from asyncbg.core.job import NewJob
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.enqueue import EnqueueLanes
from asyncbg.store.sqlite.statement import SQL, read_json


def remember_slots(
    connection: sqlite3.Connection, names: Collection[str], *, since_ms: int, latest_ms: int
) -> Mapping[str, int]:
    """The last slot fired of each schedule; one that is new, or beyond ``latest_ms``, is set to ``since_ms``."""
    values = {"names": json.dumps(list(names)), "since_ms": since_ms, "latest_ms": latest_ms}
    connection.execute(SQL["remember_schedules"], values)
    return read_json(connection, "last_slots", values)  # type: ignore[no-any-return]


class ScheduleLane:
    """Between processes it decides: who moves a slot on makes its job."""

    def __init__(self, enqueues: EnqueueLanes) -> None:
        """Made by the backend."""
        self._enqueues = enqueues

    def fire(self, tx: Transaction, items: list[tuple[str, int, NewJob]]) -> list[bool | Exception]:
        """Store the job of a slot and move the schedule on. False: the slot was fired, or the key is taken."""
        return [self._fire_one(tx, *item) for item in items]

    def _fire_one(self, tx: Transaction, schedule: str, slot_ms: int, job: NewJob) -> bool | Exception:
        values = {"name": schedule, "slot_ms": slot_ms}
        if tx.connection.execute(SQL["advance_schedule"], values).rowcount == 0:
            return False
        [enqueued] = self._enqueues.enqueue(tx, [[job]])
        return enqueued if isinstance(enqueued, Exception) else enqueued.created[0]
