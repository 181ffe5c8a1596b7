"""The statements of the SQLite store by name, and the two ways in which they are run."""

import json
import re
import sqlite3
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from asyncbg.store.sqlite.database import Transaction

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_PLACEHOLDERS = {width: "(" + ",".join("?" * width) + ")" for width in (6, 11, 23)}
_LARGEST_CHUNK = 512


def load_script(file_name: str) -> str:
    """Return the text of a file in ``store/sql``."""
    return files("asyncbg.store").joinpath("sql", file_name).read_text(encoding="utf-8")


def load_statements(file_name: str) -> Mapping[str, str]:
    """Return the statements of a file in ``store/sql``, each by the name in the ``-- name:`` line above it."""
    parts = _NAME.split(load_script(file_name))
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


SQL = load_statements("sqlite.sql")


def read_json(connection: sqlite3.Connection, name: str, values: Mapping[str, Any]) -> Any:
    """Run a statement whose result is a single JSON value, and return that value."""
    return json.loads(connection.execute(SQL[name], values).fetchone()[0])


def insert_rows(tx: Transaction, name: str, width: int, values: list[Any]) -> None:
    """Run a statement over many rows of ``width`` values, in chunks whose sizes are powers of two.

    Few different statement texts occur this way, so that all of them stay prepared.
    """
    statement, row = SQL[name], _PLACEHOLDERS[width]
    at, left = 0, len(values) // width
    while left:
        size = min(_LARGEST_CHUNK, 1 << (left.bit_length() - 1))
        chunk = values if size * width == len(values) else values[at * width : (at + size) * width]
        tx.connection.execute(statement.replace("{rows}", ",".join([row] * size)), chunk)
        at, left = at + size, left - size
