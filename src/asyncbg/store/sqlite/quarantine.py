"""Open jobs whose row holds what cannot be read, written by another program: failed, so that no other waits."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from asyncbg.core.clock import Clock
from asyncbg.core.event import EventType
from asyncbg.store.sqlite.batch import release_next
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import tell_refs
from asyncbg.store.sqlite.statement import SQL

_ERROR = {"type": "UnreadableRowError", "message": "its row in the database holds a value that is no text; see the log"}


class QuarantineLane:
    """Reads bytes, where every other statement reads texts."""

    def __init__(self, clock: Clock) -> None:
        """Made by the backend."""
        self._clock = clock

    def quarantine(self, tx: Transaction, items: list[None]) -> list[list[str]]:
        """Fail those jobs, what cannot be read replaced in them; returns their ids."""
        found = [self._fail(tx, *row) for row in _unreadable(tx.connection)]
        return [found] * len(items)

    def _fail(self, tx: Transaction, n: int, texts: Sequence[str | None]) -> str:
        now_ms = self._clock.now_ms()
        tx.connection.execute(SQL["repair_job"], (*texts, n))
        values = {"n": n, "now_ms": now_ms, **_ERROR}
        tx.connection.execute(SQL["fail_unreadable"], values)
        tell_refs(tx, [n], EventType.FAILED, now_ms, {"error": _ERROR})
        batch, stops = tx.connection.execute(SQL["batch_of"], (n,)).fetchone()
        release_next(tx, [(batch, bool(stops))], now_ms)
        return str(texts[0])


def _unreadable(connection: sqlite3.Connection) -> list[tuple[int, list[str | None]]]:
    """The rows with a value that is no text: their numbers, and their values as texts."""
    found = []
    for n, blobs, *values in connection.execute(SQL["find_open_values"]):
        texts = [_decoded(value) for value in values]
        if blobs or any(text is not None and text.encode() != value for text, value in zip(texts, values, strict=True)):
            found.append((n, texts))
    return found


def _decoded(value: Any) -> str | None:
    return None if value is None else bytes(value).decode("utf-8", "replace")
