"""Erasure of one person from the tables of the database, in short reads and short writes."""

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from asyncbg.core.job import FINAL_STATES, JobState
from asyncbg.errors import UnreadableError
from asyncbg.ops.erasure.email_matcher import EmailMatcher
from asyncbg.privacy.marks import masked_arguments, masked_result
from asyncbg.store.sqlite import SQLiteBackend

_SLICE = 2_000
_WRITE = 200
_JOB_TEXTS = (
    "args", "result", "owner", "tags", "progress", "error_message", "cancel_reason", "idempotency_key", "unique_key",
)  # fmt: skip
_JOBS = f"SELECT n, id, state, personal, {', '.join(_JOB_TEXTS)} FROM job WHERE n > ? ORDER BY n LIMIT ?"  # noqa: S608 - our columns  # nosec B608
_REWRITE_JOB = (
    "UPDATE job SET args = ?, result = ?, owner = ?, tags = ?, progress = ?, error_message = ?, cancel_reason = ?, "
    "idempotency_key = NULL, unique_key = NULL, fingerprint = NULL, durable = 0 WHERE n = ? AND finished_at IS NOT NULL"
)


_TRACEBACKS = (
    "SELECT f.job, f.attempt, job.id, f.traceback FROM failed_attempt f JOIN job ON job.n = f.job "
    "WHERE (f.job, f.attempt) > (?, ?) AND f.traceback IS NOT NULL ORDER BY f.job, f.attempt LIMIT ?"
)
_ERASE_TRACEBACK = "UPDATE failed_attempt SET traceback = NULL WHERE job = ? AND attempt = ?"


class _Table(NamedTuple):
    """A table with personal texts: its key, its text columns and the smallest possible key."""

    key: tuple[str, ...]
    texts: tuple[str, ...]
    least: tuple[Any, ...] = (-(2**63),)
    is_deleted: bool = False
    """Whether a row that names the person is deleted."""


TABLES = {
    "event": _Table(("seq",), ("data",)),
    "activity": _Table(("seq",), ("owner", "action")),
    "user_statistics": _Table(("owner", "user_id"), ("owner", "by_action"), ("", -(2**63)), is_deleted=True),
    "import": _Table(("seq",), ("owner", "file_name", "header", "error")),
    "import_row": _Table(("place",), ("data",), is_deleted=True),
    "import_rejection": _Table(("place",), ("reason",)),
    "import_rejected_row": _Table(("place",), ("cells",), is_deleted=True),
    "stream_ticket": _Table(("hash",), ("owner", "holder", "path"), (b"",), is_deleted=True),
}
_PLAIN = frozenset(
    {
        "job", "failed_attempt", "audit",
        "log", "lookup_key", "purged_job", "schedule", "schema_version", "api_key", "browser_session",
        "activity_total", "activity_by_action", "activity_by_day",
    }
)  # fmt: skip
"""Tables that are searched separately, or never contain addresses: the name of a key cannot be one.

Triggers update the counts of the activity log with its rows.
"""


class FoundJob(NamedTuple):
    """A job that contains the person's address."""

    n: int
    id: str
    state: JobState
    marks: Mapping[str, Any]
    texts: Mapping[str, str | None]

    @property
    def is_open(self) -> bool:
        """Whether the job is not final."""
        return self.state not in FINAL_STATES


@dataclass(slots=True)
class Findings:
    """Other findings of a search: longer addresses of other people, and jobs that cannot be decrypted."""

    longer: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)


class Rows:
    """Search and erasure of one address in the database of a service."""

    def __init__(self, store: SQLiteBackend, address: EmailMatcher) -> None:
        self.findings = Findings()
        self._store = store
        self._address = address

    async def jobs(self, tokens: frozenset[str] = frozenset()) -> list[FoundJob]:
        """Return the jobs that contain the address, or one of the ``tokens`` of uploads with it."""
        found: list[FoundJob] = []
        async for rows in self._pages(_JOBS, (-(2**63),)):
            for n, job_id, state, personal, *values in rows:
                texts = self._decrypted(job_id, dict(zip(_JOB_TEXTS, values, strict=True)))
                texts_found = [text for text in texts.values() if text]
                if any(map(self._address.is_in, texts_found)) or any(
                    token in (texts["args"] or "") for token in tokens
                ):
                    found.append(FoundJob(n, job_id, JobState(state), json.loads(personal), texts))
                else:
                    self._note_longer(texts_found)
        return found

    async def rewrite_jobs(self, jobs: Sequence[FoundJob]) -> int:
        """Replace all personal data of final jobs by pseudonyms. Return the number of jobs."""
        return await self._write(_REWRITE_JOB, [self._erased_values(job) for job in jobs])

    async def erase_tracebacks(self, jobs: Sequence[FoundJob]) -> int:
        """Delete the tracebacks of these jobs, and all others with the address. Return their number."""
        keys: list[tuple[Any, ...]] = []
        theirs = {job.n for job in jobs}
        async for rows in self._pages(_TRACEBACKS, (-(2**63), -1)):
            for n, attempt, job_id, stored in rows:
                text = self._readable(stored, job_id)
                if n in theirs or (text is not None and self._address.is_in(text)):
                    keys.append((n, attempt))
                elif text is not None:
                    self._note_longer([text])
        return await self._write(_ERASE_TRACEBACK, keys)

    def _readable(self, stored: str, job_id: str) -> str | None:
        try:
            return self._store.encryption.decrypt(stored, job_id, "traceback")
        except UnreadableError:
            self.findings.unreadable.add(job_id)
            return None

    async def erase(self, name: str) -> int:
        """Erase the address from one of the other tables, or delete the rows with it. Return their number."""
        if not await self._has(name):
            return 0
        table, erased = TABLES[name], 0
        where = " AND ".join(f"{column} = ?" for column in table.key)
        changed = ", ".join(f"{column} = ?" for column in table.texts)
        async for rows in self._slices(name, table):
            found = []
            for row in rows:
                key, texts = row[: len(table.key)], row[len(table.key) :]
                if any(self._address.is_in(text) for text in texts if text):
                    found.append((key, texts))
                else:
                    self._note_longer([text for text in texts if text])
            if table.is_deleted:
                erased += await self._write(f'DELETE FROM "{name}" WHERE {where}', [key for key, _ in found])  # noqa: S608  # nosec B608
            else:
                values = [(*(self._erased_text(name, text) for text in texts), *key) for key, texts in found]
                erased += await self._write(f'UPDATE "{name}" SET {changed} WHERE {where}', values)  # noqa: S608  # nosec B608
        return erased

    async def elsewhere(self) -> dict[str, int]:
        """Return the number of rows with the address in tables of other applications, which are not changed."""
        tables = await self._read(
            lambda c: [name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        )
        others = [name for name in tables if name not in _PLAIN | TABLES.keys() and not name.startswith("sqlite_")]
        return {name: many for name in others if (many := await self._read(partial(self._count, name)))}

    def _count(self, table: str, connection: sqlite3.Connection) -> int:
        quoted = table.replace('"', '""')
        # The name comes from the schema, and is quoted.
        rows = connection.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608  # nosec B608  # nosemgrep
        return sum(any(isinstance(text, str) and self._address.is_in(text) for text in row) for row in rows)

    def _decrypted(self, job_id: str, texts: dict[str, str | None]) -> dict[str, str | None]:
        for name in ("args", "result"):
            try:
                texts[name] = self._store.encryption.decrypt(texts[name] or "", job_id, name) or None
            except UnreadableError:
                self.findings.unreadable.add(job_id)
                texts[name] = "{}" if name == "args" else "null"
        return texts

    def _erased_values(self, job: FoundJob) -> tuple[Any, ...]:
        """Return the remaining values of a job, none of which identifies the person."""
        hide, encryption = self._address.redacted, self._store.encryption
        texts = _emptied(job.texts) if self._address.is_in(job.texts["owner"] or "") else job.texts
        args = self._address.redacted_json(masked_arguments(json.loads(texts["args"] or "{}"), job.marks))
        result = texts["result"]
        if result is not None:
            shown = self._address.redacted_json(masked_result(json.loads(result), job.marks))
            result = encryption.encrypt(json.dumps(shown, ensure_ascii=False), job.id, "result")
        rest = [None if (text := texts[name]) is None else hide(text) for name in _JOB_TEXTS[2:7]]
        return (encryption.encrypt(json.dumps(args, ensure_ascii=False), job.id, "args"), result, *rest, job.n)

    def _erased_text(self, table: str, text: str | None) -> str | None:
        """Return the text with the address replaced; an action with it is replaced completely."""
        if text is None or not self._address.is_in(text):
            return text
        return self._address.replacement if table == "activity" else self._address.redacted(text)

    def _note_longer(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.findings.longer |= self._address.longer_addresses(text)

    async def _has(self, table: str) -> bool:
        return bool(await self._read(partial(_rows, "SELECT 1 FROM sqlite_master WHERE name = ?", (table,))))

    def _slices(self, name: str, table: _Table) -> AsyncIterator[list[tuple[Any, ...]]]:
        key, marks = ", ".join(table.key), ", ".join("?" * len(table.key))
        columns = f"{key}, {', '.join(table.texts)}"
        statement = f'SELECT {columns} FROM "{name}" WHERE ({key}) > ({marks}) ORDER BY {key} LIMIT ?'  # noqa: S608  # nosec B608 - of our table
        return self._pages(statement, table.least)

    async def _pages(self, statement: str, after: tuple[Any, ...]) -> AsyncIterator[list[tuple[Any, ...]]]:
        """Yield all rows after a key in slices, so that no read transaction is long."""
        while rows := await self._read(partial(_rows, statement, (*after, _SLICE))):
            yield rows
            after = rows[-1][: len(after)]

    async def _read(self, fn: Callable[[sqlite3.Connection], Any]) -> Any:
        return await self._store.database.read(fn)

    async def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement for each row, one transaction per slice. Return the number of changed rows."""
        changed = 0
        for at in range(0, len(rows), _WRITE):
            changed += await self._store.database.write(partial(_change, statement, rows[at : at + _WRITE]))
        return changed


def _emptied(texts: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """Return the emptied texts of a job that the person owns: all its data is theirs."""
    return {**texts, "args": "{}", "result": texts["result"] and "null", "tags": "[]", "progress": None}


def _rows(statement: str, values: Sequence[Any], connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(statement, values).fetchall()


def _change(statement: str, rows: Sequence[tuple[Any, ...]], connection: sqlite3.Connection) -> int:
    return connection.executemany(statement, rows).rowcount
