"""Re-encryption of stored data with the first key: after a rotation, or after encryption was enabled."""

import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncbg.errors import SettingsError, UnreadableError
from asyncbg.store.encrypted import replace_digest_key
from asyncbg.store.sqlite import SQLiteBackend

_SLICE = 200
_READ = "SELECT n, id, args, result, idempotency_key, fingerprint, unique_key FROM job WHERE n > ? ORDER BY n LIMIT ?"
_WRITE = (
    "UPDATE job SET args = ?, result = ?, idempotency_key = ?, fingerprint = ?, unique_key = ? "
    "WHERE n = ? AND args = ? AND result IS ?"
)

_READ_TRACEBACKS = (
    "SELECT f.job, f.attempt, job.id, f.traceback FROM failed_attempt f JOIN job ON job.n = f.job "
    "WHERE (f.job, f.attempt) > (?, ?) AND f.traceback IS NOT NULL ORDER BY f.job, f.attempt LIMIT ?"
)
_WRITE_TRACEBACK = "UPDATE failed_attempt SET traceback = ? WHERE job = ? AND attempt = ? AND traceback = ?"


@dataclass(slots=True)
class Rekeyed:
    """The number of re-encrypted jobs, and of those that no key can decrypt."""

    jobs: int = 0
    unreadable: int = 0


async def rekey(store: SQLiteBackend) -> Rekeyed:
    """Re-encrypt every job's arguments and result with the first key, in slices, beside a running service.

    A job that changes meanwhile is encrypted with the first key by its service. Raises SettingsError without keys.
    """
    encryption = store.encryption
    if not encryption.is_on:
        raise SettingsError("ASYNCBG_PRIVACY__ENCRYPTION_KEYS is empty; set it to the key to encrypt with")
    await replace_digest_key(store.database, encryption)
    done, after = Rekeyed(), -1
    while rows := await store.database.read(partial(_read, after)):
        after = rows[-1][0]
        changed = []
        for row in rows:
            try:
                values = _reencrypted(store, row)
            except UnreadableError:
                done.unreadable += 1
                continue
            if values is not None:
                changed.append(values)
        done.jobs += await store.database.write(partial(_write, changed))
    await _rekey_tracebacks(store, done)
    return done


async def _rekey_tracebacks(store: SQLiteBackend, done: Rekeyed) -> None:
    after: tuple[Any, ...] = (-1, -1)
    while rows := await store.database.read(partial(_read_tracebacks, after)):
        after = rows[-1][:2]
        changed = []
        for n, attempt, job_id, stored in rows:
            try:
                renewed = store.encryption.reencrypt(stored, job_id, "traceback")
            except UnreadableError:
                done.unreadable += 1
                continue
            if renewed != stored:
                changed.append((renewed, n, attempt, stored))
        await store.database.write(partial(_write_tracebacks, changed))


def _reencrypted(store: SQLiteBackend, row: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the values for ``_WRITE``; None if nothing changes."""
    encryption, (n, job_id, args, result, idempotency_key, fingerprint, unique_key) = store.encryption, row
    new = (
        encryption.reencrypt(args, job_id, "args"),
        None if result is None else encryption.reencrypt(result, job_id, "result"),
        encryption.digest(idempotency_key, "idempotency_key"),
        encryption.digest(fingerprint, "fingerprint"),
        encryption.digest(unique_key, "unique_key"),
    )
    return None if new == row[2:] else (*new, n, args, result)


def _read(after: int, connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(_READ, (after, _SLICE)).fetchall()


def _write(changed: list[tuple[Any, ...]], connection: sqlite3.Connection) -> int:
    return connection.executemany(_WRITE, changed).rowcount if changed else 0


def _read_tracebacks(after: tuple[Any, ...], connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(_READ_TRACEBACKS, (*after, _SLICE)).fetchall()


def _write_tracebacks(changed: list[tuple[Any, ...]], connection: sqlite3.Connection) -> int:
    return connection.executemany(_WRITE_TRACEBACK, changed).rowcount if changed else 0
