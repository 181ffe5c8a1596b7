"""The rows of one person: found in every table, in short reads, and rewritten in short writes."""

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from asyncbg.backends.sqlite import SQLiteBackend
from asyncbg.errors import UnreadableError
from asyncbg.forget.address import Address
from asyncbg.job import FINAL_STATES, JobState
from asyncbg.personal import masked_arguments, masked_result

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
_SINGLE = {
    "event": ("seq", ("data",)),
    "activity": ("seq", ("action",)),
    "user_statistics": ("user_id", ("by_action",)),
    "import": ("seq", ("file_name", "header", "error")),
    "import_row": ("place", ("data",)),
    "import_rejection": ("place", ("reason",)),
}
"""Our other tables: the key of each, and its columns that hold texts."""
_PLAIN = frozenset({"job", "log", "lookup_key", "purged_job", "schedule", "schema_version"})


class FoundJob(NamedTuple):
    """A job that names the person."""

    n: int
    id: str
    state: JobState
    marks: Mapping[str, Any]
    texts: Mapping[str, str | None]

    @property
    def is_open(self) -> bool:
        """Whether it is not final."""
        return self.state not in FINAL_STATES


@dataclass(slots=True)
class Remarks:
    """What a search met besides: other people's longer addresses, jobs that cannot be decrypted."""

    longer: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)


class Rows:
    """The database of a service, searched for one address."""

    def __init__(self, store: SQLiteBackend, address: Address) -> None:
        """Search ``store``."""
        self.remarks = Remarks()
        self._store = store
        self._address = address

    async def jobs(self, tokens: frozenset[str] = frozenset()) -> list[FoundJob]:
        """The jobs that name the address, or one of the ``tokens`` of uploads that do."""
        found: list[FoundJob] = []
        async for rows in self._slices(_JOBS):
            for n, job_id, state, personal, *values in rows:
                texts = self._opened(job_id, dict(zip(_JOB_TEXTS, values, strict=True)))
                told = [text for text in texts.values() if text]
                if any(map(self._address.is_in, told)) or any(token in (texts["args"] or "") for token in tokens):
                    found.append(FoundJob(n, job_id, JobState(state), json.loads(personal), texts))
                else:
                    self._note_longer(told)
        return found

    async def rewrite_jobs(self, jobs: Sequence[FoundJob]) -> int:
        """Put pseudonyms in the place of everything personal of final jobs; returns how many."""
        return await self._write(_REWRITE_JOB, [self._forgotten(job) for job in jobs])

    async def erase(self, table: str) -> int:
        """Erase the address from one of the other tables; an imported row that names it goes as a whole."""
        key, columns = _SINGLE[table]
        if not await self._has(table):
            return 0
        erased = 0
        texts = ", ".join(columns)
        async for rows in self._slices(f'SELECT {key}, {texts} FROM "{table}" WHERE {key} > ? ORDER BY {key} LIMIT ?'):  # noqa: S608  # nosec B608 - of our table
            found = []
            for row in rows:
                told = [text for text in row[1:] if text]
                if any(map(self._address.is_in, told)):
                    found.append(row)
                else:
                    self._note_longer(told)
            if table == "import_row":
                erased += await self._write("DELETE FROM import_row WHERE place = ?", [(row[0],) for row in found])
            else:
                changed = ", ".join(f"{column} = ?" for column in columns)
                values = [(*(self._hidden(table, text) for text in row[1:]), row[0]) for row in found]
                erased += await self._write(f'UPDATE "{table}" SET {changed} WHERE {key} = ?', values)  # noqa: S608  # nosec B608
        return erased

    async def elsewhere(self) -> dict[str, int]:
        """How many rows of tables that are not ours name the address: they are left alone."""
        tables = await self._read(
            lambda c: [name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        )
        others = [name for name in tables if name not in _PLAIN | _SINGLE.keys() and not name.startswith("sqlite_")]
        return {name: many for name in others if (many := await self._read(partial(self._count, name)))}

    def _count(self, table: str, connection: sqlite3.Connection) -> int:
        quoted = table.replace('"', '""')
        # The name is the schema's own, and quoted.
        rows = connection.execute(f'SELECT * FROM "{quoted}"')  # noqa: S608  # nosec B608  # nosemgrep
        return sum(any(isinstance(text, str) and self._address.is_in(text) for text in row) for row in rows)

    def _opened(self, job_id: str, texts: dict[str, str | None]) -> dict[str, str | None]:
        for name in ("args", "result"):
            try:
                texts[name] = self._store.seal.open(texts[name] or "", job_id, name) or None
            except UnreadableError:
                self.remarks.unreadable.add(job_id)
                texts[name] = "{}" if name == "args" else "null"
        return texts

    def _forgotten(self, job: FoundJob) -> tuple[Any, ...]:
        """What stays of a job: who it was for can be told from nothing of it."""
        hide, seal = self._address.hidden, self._store.seal
        args = self._address.hidden_json(masked_arguments(json.loads(job.texts["args"] or "{}"), job.marks))
        result = job.texts["result"]
        if result is not None:
            shown = self._address.hidden_json(masked_result(json.loads(result), job.marks))
            result = seal.seal(json.dumps(shown, ensure_ascii=False), job.id, "result")
        rest = [None if (text := job.texts[name]) is None else hide(text) for name in _JOB_TEXTS[2:7]]
        return (seal.seal(json.dumps(args, ensure_ascii=False), job.id, "args"), result, *rest, job.n)

    def _hidden(self, table: str, text: str | None) -> str | None:
        """A free text that names the person goes whole; JSON keeps its form."""
        if text is None or not self._address.is_in(text):
            return text
        if table == "activity":
            return self._address.stand_in
        return self._statistics(text) if table == "user_statistics" else self._address.hidden(text)

    def _statistics(self, by_action: str) -> str:
        """Counts by action, those of erased actions under the pseudonym."""
        counts: dict[str, int] = {}
        for action, many in json.loads(by_action).items():
            name = self._address.stand_in if self._address.is_in(action) else action
            counts[name] = counts.get(name, 0) + many
        return json.dumps(dict(sorted(counts.items())))

    def _note_longer(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.remarks.longer |= self._address.longer_in(text)

    async def _has(self, table: str) -> bool:
        return bool(await self._read(partial(_rows, "SELECT 1 FROM sqlite_master WHERE name = ?", (table,))))

    async def _slices(self, statement: str) -> AsyncIterator[list[tuple[Any, ...]]]:
        """All rows by their first column, a slice at a time: no read is open for long."""
        after = -(2**63)
        while rows := await self._read(partial(_rows, statement, (after, _SLICE))):
            yield rows
            after = rows[-1][0]

    async def _read(self, fn: Callable[[sqlite3.Connection], Any]) -> Any:
        return await self._store.database.read(fn)

    async def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement for each of the rows, a slice in a transaction; returns how many rows it changed."""
        changed = 0
        for at in range(0, len(rows), _WRITE):
            changed += await self._store.database.write(partial(_change, statement, rows[at : at + _WRITE]))
        return changed


def _rows(statement: str, values: Sequence[Any], connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(statement, values).fetchall()


def _change(statement: str, rows: Sequence[tuple[Any, ...]], connection: sqlite3.Connection) -> int:
    return connection.executemany(statement, rows).rowcount
