"""Work inside the caller's own transaction: on the caller's aiosqlite connection, committed by the caller."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import aiosqlite

from asyncbg.errors import DatabaseError, TransactionError
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.database_file import MEMORY, translate

T = TypeVar("T")

# A write that changes nothing acquires the write lock before anything is read, so that no other connection can assign
# the numbers that are read.
_TAKE_LOCK = "UPDATE log SET seq = seq"


async def join(connection: aiosqlite.Connection, path: str, work: Callable[[Transaction], T]) -> T:
    """Run ``work`` in the open transaction of ``connection``, whose database must be the file ``path``.

    All of its writes are in that transaction, or none if it raises. Raises TransactionError where the connection
    cannot carry them, DatabaseError where its transaction cannot get the write lock.
    """

    def joined(raw: sqlite3.Connection) -> T:
        with _default_factories(raw):
            _require_file(raw, path)
            _require_transaction(raw)
            with _all_or_nothing(raw):
                return _run(Transaction(raw), work)

    try:
        # aiosqlite's public methods are one hop a statement; this is the call they are all made of.
        return cast(T, await connection._execute(joined, connection._conn))  # type: ignore[no-untyped-call]  # private: no annotations
    except sqlite3.Error as error:
        raise _translate(error) from error
    except ValueError as error:  # what aiosqlite raises for a connection that is not open
        if isinstance(error, TransactionError):
            raise
        raise TransactionError("the connection is not open; pass one whose transaction is still open") from error


def _run(tx: Transaction, work: Callable[[Transaction], T]) -> T:
    """Do the work and write back the numbers it assigned."""
    tx.connection.execute(_TAKE_LOCK)
    result = work(tx)
    for finish in tx.finishers.values():
        finish(tx)
    return result


@contextmanager
def _default_factories(raw: sqlite3.Connection) -> Iterator[None]:
    """Read rows as tuples and text as str, whatever the caller has configured on the connection."""
    rows, text = raw.row_factory, raw.text_factory
    raw.row_factory, raw.text_factory = None, str
    try:
        yield
    finally:
        raw.row_factory, raw.text_factory = rows, text


@contextmanager
def _all_or_nothing(raw: sqlite3.Connection) -> Iterator[None]:
    """Leave the rest of the caller's transaction as it was where the work fails."""
    raw.execute("SAVEPOINT asyncbg")
    try:
        yield
    except BaseException:
        if raw.in_transaction:  # some errors end the whole transaction
            raw.execute("ROLLBACK TO asyncbg")
            raw.execute("RELEASE asyncbg")
        raise
    raw.execute("RELEASE asyncbg")


def _require_file(raw: sqlite3.Connection, path: str) -> None:
    if path == MEMORY:
        raise TransactionError("a database in memory has one connection only; set ASYNCBG_DATABASE_URL to a file")
    file = next((row[2] for row in raw.execute("PRAGMA database_list") if row[1] == "main"), "")
    if not file or not _is_same(file, path):
        raise TransactionError(
            "the connection is to another database than the jobs'; connect to the file of ASYNCBG_DATABASE_URL"
        )


def _is_same(file: str, path: str) -> bool:
    try:
        return Path(file).samefile(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise TransactionError(f"cannot determine which database the connection is to: {error.strerror}") from error


def _require_transaction(raw: sqlite3.Connection) -> None:
    if not raw.in_transaction:
        raise TransactionError(
            'no transaction is open on the connection, so there is none to join; await connection.execute("BEGIN '
            'IMMEDIATE") first, or leave connection= out'
        )


def _translate(error: sqlite3.Error) -> DatabaseError:
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return DatabaseError(
            f"another connection writes to the database; roll back, begin with BEGIN IMMEDIATE, and retry ({code})"
        )
    return translate(error)
