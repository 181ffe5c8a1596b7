"""The statements of the SQLite backend by name, and the two shapes in which they are run."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from asyncbg.store.sql import load_statements
from asyncbg.store.sqlite.database import Transaction

SQL = load_statements("sqlite.sql")

_PLACEHOLDERS = {width: "(" + ",".join("?" * width) + ")" for width in (6, 11, 23)}
_LARGEST_CHUNK = 512


def read_json(connection: sqlite3.Connection, name: str, values: Mapping[str, Any]) -> Any:
    """The one JSON value that a statement answers with."""
    return json.loads(connection.execute(SQL[name], values).fetchone()[0])


def insert_rows(tx: Transaction, name: str, width: int, values: list[Any]) -> None:
    """Run a statement over many rows of ``width`` values, in chunks whose sizes are powers of two.

    So few different statements occur that all of them stay prepared.
    """
    statement, row = SQL[name], _PLACEHOLDERS[width]
    at, left = 0, len(values) // width
    while left:
        size = min(_LARGEST_CHUNK, 1 << (left.bit_length() - 1))
        chunk = values if size * width == len(values) else values[at * width : (at + size) * width]
        tx.connection.execute(statement.replace("{rows}", ",".join([row] * size)), chunk)
        at, left = at + size, left - size
