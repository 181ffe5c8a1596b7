"""Deleting old jobs and their events, a slice of rows a commit."""

import json
import sqlite3

from asyncbg.store.sqlite.database import Database, Transaction
from asyncbg.store.sqlite.statement import SQL, read_json

_JOBS, _EVENTS = 100, 500
"""Rows of one slice: a few milliseconds of the writer."""


async def purge(database: Database, *, before_ms: int, limit: int) -> int:
    """Delete up to ``limit`` final jobs finished before ``before_ms``, and their events, in slices of rows."""
    found = await database.read(lambda connection: _find_purgeable(connection, before_ms, limit))
    purged, is_done = 0, False
    while not is_done:
        slice_, found = found[:_JOBS], found[_JOBS:]
        many, is_clean = await database.submit(_purge, (before_ms, slice_))
        purged += many
        is_done = is_clean and not found
    return purged


def _find_purgeable(connection: sqlite3.Connection, before_ms: int, limit: int) -> list[int]:
    """The oldest jobs that may go."""
    return read_json(connection, "find_purgeable", {"before_ms": before_ms, "limit": limit})  # type: ignore[no-any-return]


def _purge(tx: Transaction, items: list[tuple[int, list[int]]]) -> list[tuple[int, bool]]:
    """One slice each: how many jobs went, and whether all events of purged jobs did."""
    return [_purge_slice(tx, *item) for item in items]


def _purge_slice(tx: Transaction, before_ms: int, found: list[int]) -> tuple[int, bool]:
    ns = read_json(tx.connection, "still_purgeable", {"ns": json.dumps(found), "before_ms": before_ms})
    if ns:
        for name in ("mark_purged", "delete_jobs", "delete_failed", "remember_purged"):
            tx.connection.execute(SQL[name], {"ns": json.dumps(ns)})
    deleted = tx.connection.execute(SQL["delete_events"], {"limit": _EVENTS}).rowcount
    if deleted:
        tx.connection.execute(SQL["forget_purged"])
    return len(ns), deleted < _EVENTS
