"""Import of uploaded CSV files into the database in batches, resumed at a cursor after a crash."""

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import anyio
from anyio.to_thread import run_sync

from asyncbg.core.clock import Clock
from asyncbg.core.job import ANONYMOUS
from asyncbg.core.keyset_page import KeysetPage, build_page, parse_cursor
from asyncbg.errors import AsyncBGError, FinalError
from asyncbg.service.integrations.csv_dialect import Quoting
from asyncbg.service.integrations.csv_encoding import Source, shown_encoding
from asyncbg.service.integrations.csv_format import DeclaredFormat
from asyncbg.service.integrations.csv_reader import Batch, CsvCursor, OpenedCsv, Rejection, open_csv, read_batches
from asyncbg.service.integrations.uploads import Upload, Uploads
from asyncbg.settings import UploadSettings
from asyncbg.store.sqlite.database import Database, Guard, unguarded

OnProgress = Callable[[int, int, int, str], None]
"""Called after every commit with the rows read, the bytes read, the total bytes and a message."""
FindNeeded = Callable[[Collection[str]], Awaitable[Collection[str]]]
Status = Literal["running", "completed", "failed"]

MAX_REJECTIONS = 1_000
"""Rejections that an import shows; a download has more."""
MAX_KEPT_REJECTIONS = 100_000
"""Rejections kept for one import; those after it are only counted."""

_SCHEMA = """
CREATE TABLE import (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL UNIQUE,
    user_id       INTEGER NOT NULL,
    token         TEXT NOT NULL,
    file_name     TEXT NOT NULL,
    size          INTEGER NOT NULL,
    status        TEXT NOT NULL CHECK (status IN ('running', 'completed', 'failed')),
    header        TEXT CHECK (header IS NULL OR json_valid(header)),
    delimiter     TEXT,
    encoding      TEXT,
    byte_offset   INTEGER NOT NULL DEFAULT 0,
    row_number    INTEGER NOT NULL DEFAULT 0,
    rows_stored   INTEGER NOT NULL DEFAULT 0,
    rows_rejected INTEGER NOT NULL DEFAULT 0,
    started_ms    INTEGER NOT NULL,
    finished_ms   INTEGER CHECK ((finished_ms IS NULL) = (status = 'running')),
    error         TEXT CHECK ((error IS NOT NULL) = (status = 'failed'))
);
CREATE INDEX import_by_user ON import (user_id, seq);
CREATE INDEX import_by_token ON import (token);
-- A row of a file: the values in the order of the import's header. Its place is import.seq << 32 | row number.
CREATE TABLE import_row (
    place INTEGER PRIMARY KEY,
    data  TEXT NOT NULL
);
CREATE TABLE import_rejection (
    place         INTEGER PRIMARY KEY,
    column_number INTEGER,
    reason        TEXT NOT NULL
);
"""

# A user number is scoped to its owner.
_OWNERS = """
ALTER TABLE import ADD COLUMN owner TEXT NOT NULL DEFAULT 'anonymous';
CREATE INDEX import_of_owner ON import (owner, user_id, seq);
"""

# The file's format and how it was determined; NULL before its header is read, and for imports of older versions.
_FORMATS = """
ALTER TABLE import ADD COLUMN encoding_source TEXT;
ALTER TABLE import ADD COLUMN delimiter_source TEXT;
ALTER TABLE import ADD COLUMN quoting TEXT;
ALTER TABLE import ADD COLUMN kept TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(kept));
ALTER TABLE import ADD COLUMN width INTEGER NOT NULL DEFAULT 0;
ALTER TABLE import ADD COLUMN is_mended INTEGER NOT NULL DEFAULT 0;
ALTER TABLE import ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(warnings));
ALTER TABLE import ADD COLUMN rows_skipped INTEGER NOT NULL DEFAULT 0;
-- The cells of a rejected row as they are in the file, by the place of its rejection.
CREATE TABLE import_rejected_row (
    place INTEGER PRIMARY KEY,
    cells TEXT NOT NULL
);
"""
MIGRATIONS = (_SCHEMA, _OWNERS, _FORMATS)

# The first attempt inserts the record; a later one resumes it, also after a failure.
_BEGIN = """
INSERT INTO import (id, owner, user_id, token, file_name, size, status, started_ms)
VALUES (?, ?, ?, ?, ?, ?, 'running', ?)
ON CONFLICT (id) DO UPDATE SET
    status = CASE status WHEN 'failed' THEN 'running' ELSE status END,
    finished_ms = CASE status WHEN 'failed' THEN NULL ELSE finished_ms END,
    error = NULL
RETURNING seq, status, header, delimiter, encoding, byte_offset, row_number, rows_stored, rows_rejected, rows_skipped,
    kept, width, is_mended, warnings
"""

_SET_FORMAT = """
UPDATE import SET header = ?, delimiter = ?, encoding = ?, byte_offset = ?, row_number = ?, kept = ?, width = ?,
    is_mended = ?, encoding_source = ?, delimiter_source = ?, quoting = ?, warnings = ?
WHERE seq = ? AND status = 'running' AND header IS NULL
"""

# The old offset is a fencing token: of two workers on one import, only one advances it and stores its rows.
_ADVANCE = """
UPDATE import SET byte_offset = ?, row_number = ?, rows_stored = rows_stored + ?, rows_rejected = rows_rejected + ?,
    rows_skipped = rows_skipped + ?
WHERE seq = ? AND status = 'running' AND byte_offset = ?
"""

_STORE_ROWS = "INSERT INTO import_row SELECT ? + key, value FROM json_each(?) WHERE type = 'array'"

_STORE_REJECTIONS = """
INSERT INTO import_rejection SELECT ? + (value ->> 0), value ->> 1, value ->> 2 FROM json_each(?)
"""

_STORE_REJECTED_ROWS = """
INSERT INTO import_rejected_row SELECT ?1 + (value ->> 0), value -> 3 FROM json_each(?2)
"""

_COMPLETE = """
UPDATE import SET status = 'completed', finished_ms = ? WHERE seq = ? AND status = 'running' AND byte_offset = ?
"""

_FAIL = "UPDATE import SET status = 'failed', finished_ms = ?, error = ? WHERE id = ? AND status = 'running'"

_FINISHED = """
SELECT token FROM import WHERE token IN (SELECT value FROM json_each(?)) AND status <> 'running'
"""

_LIST = """
SELECT json_group_array(json_array(
    seq, id, user_id, file_name, status, rows_stored, rows_rejected,
    json((SELECT json_group_array(json_array(place & 4294967295, column_number, reason)) FROM (
        SELECT place, column_number, reason FROM import_rejection
        WHERE place BETWEEN seq << 32 AND (seq << 32) + 4294967295 ORDER BY place LIMIT ?))),
    started_ms, finished_ms, error, encoding, encoding_source, delimiter, delimiter_source, quoting, json(header),
    rows_skipped, json(warnings)))
FROM (SELECT * FROM import WHERE user_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?)
"""

_FIND = "SELECT seq, file_name, header FROM import WHERE user_id = ? AND id = ?"

_REJECTED = """
SELECT place & 4294967295, column_number, reason, coalesce(cells, '[]')
FROM import_rejection LEFT JOIN import_rejected_row USING (place)
WHERE place > ? AND place <= ? ORDER BY place LIMIT ?
"""

_FIRST_REJECTION = """
SELECT place & 4294967295, reason FROM import_rejection WHERE place > ? ORDER BY place LIMIT 1
"""

_ROWS = """
SELECT header, (SELECT json_group_array(json(data)) FROM (
    SELECT data FROM import_row
    WHERE place BETWEEN (seq << 32) + :first_row AND (seq << 32) + 4294967295 ORDER BY place LIMIT :limit))
FROM import WHERE id = :id
"""

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


class TooManyRowsError(FinalError):
    """The file has more rows than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the file has more than {limit:,} rows; the first {limit:,} were imported and stay")
        self.limit = limit


class NothingStoredError(FinalError):
    """Every row of the file was rejected."""

    def __init__(self, rejected: int, row: int, reason: str) -> None:
        which = "the only row was" if rejected == 1 else f"all {rejected:,} rows were"
        super().__init__(f"{which} rejected, so nothing was stored; row {row}: {reason}")


class ImportOvertakenError(AsyncBGError):
    """Another worker has continued or ended this import; nothing was stored twice."""

    def __init__(self, import_id: str) -> None:
        super().__init__(f"import {import_id} is being continued elsewhere or has ended; this attempt stops")


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of an import. ``rows_skipped`` counts blank rows."""

    rows_stored: int
    rows_rejected: int
    rows_skipped: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportRecord:
    """One import as shown to its owner. ``rejections`` are the first thousand, ``rows_rejected`` counts all.

    The fields of the file's format are None until its header is read.
    """

    id: str
    user_id: int
    file: str
    status: Status
    rows_stored: int
    rows_rejected: int
    rejections: tuple[Rejection, ...]
    started_ms: int
    finished_ms: int | None
    error: str | None
    encoding: str | None
    encoding_source: Source | None
    delimiter: str | None
    delimiter_source: Source | None
    quoting: Quoting | None
    columns: tuple[str, ...] | None
    rows_skipped: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RejectedRows:
    """The rejected rows of an import: the file name, its columns, and the pages of rows."""

    file: str
    columns: tuple[str, ...]
    pages: AsyncIterator[Sequence[Rejection]]


class Imports:
    """Receiver and importer of CSV files."""

    def __init__(
        self, database: Database, data_dir: Path, settings: UploadSettings, *, clock: Clock, find_needed: FindNeeded
    ) -> None:
        """Store uploads below ``data_dir`` and rows in ``database``, which must be open before ``open`` is called.

        ``find_needed`` returns those of the given uploads that an unfinished job will read.
        """
        self._database = database
        self._clock = clock
        self._settings = settings
        self._uploads = Uploads(
            data_dir / "uploads", max_bytes=settings.max_bytes, min_free_bytes=settings.min_free_bytes, clock=clock
        )
        self._find_needed = find_needed
        self._limiter = anyio.CapacityLimiter(2)

    async def open(self) -> None:
        """Create or migrate the tables, and remove uploads that no job will import."""
        await self._database.migrate("imports", MIGRATIONS)
        await self._uploads.open()
        tokens = json.dumps(await self._uploads.tokens())
        finished = await self._database.read(lambda connection: connection.execute(_FINISHED, (tokens,)).fetchall())
        left = {token for (token,) in finished} | set(await self._uploads.old_tokens())
        needed = await self._find_needed(left) if left else ()
        await self._uploads.discard(*(Upload(token, "", 0) for token in left.difference(needed)))

    async def check_space(self, expected_bytes: int) -> None:
        """Raise UploadSpaceError if the disk has no room for an upload of that size."""
        await self._uploads.check_space(expected_bytes)

    async def receive(self, chunks: AsyncIterator[bytes], *, file_name: str) -> Upload:
        """Stream an upload to disk. Raises UploadTooLargeError, UploadSpaceError and any error of ``chunks``."""
        return await self._uploads.receive(chunks, file_name=file_name)

    async def discard(self, upload: Upload, *, guard: Guard | None = None) -> None:
        """Remove an upload; a missing one is ignored.

        With a ``guard`` it is removed inside a transaction after the guard's check, so no other worker can claim the
        job, and with it the upload, in between.
        """
        if guard is None:
            await self._uploads.discard(upload)
            return

        def remove(connection: sqlite3.Connection) -> None:
            guard(connection)
            self._uploads.remove(upload)

        await self._database.write(remove)

    async def run(
        self,
        import_id: str,
        *,
        user_id: int,
        upload: Upload,
        on_progress: OnProgress,
        owner: str = ANONYMOUS,
        guard: Guard = unguarded,
    ) -> ImportResult:
        """Import ``upload``, from the start or from the cursor of an earlier attempt of ``import_id``.

        A complete import is not repeated: its result is returned. Raises CsvError, TooManyRowsError,
        NothingStoredError and UploadGoneError, after which the import is marked as failed, and ImportOvertakenError,
        after which it is not.
        ``guard`` is called before every write; an error of it leaves the import unchanged.
        """
        begin = (import_id, owner, user_id, upload.token, upload.file_name, upload.size, self._clock.now_ms())

        def begin_attempt(connection: sqlite3.Connection) -> tuple[Any, ...]:
            guard(connection)
            return tuple(connection.execute(_BEGIN, begin).fetchone())

        run = _Run(self._database, import_id, await self._database.write(begin_attempt), guard)
        if run.is_complete:
            return run.result
        try:
            file = await run_sync(self._uploads.read, upload, limiter=self._limiter)
            with file:
                await self._import(run, file, upload, on_progress)
            await run.check_stored()
        except FinalError as error:
            await self.fail(import_id, reason=str(error), guard=guard)
            raise
        await run.complete(self._clock.now_ms())
        return run.result

    async def fail(self, import_id: str, *, reason: str, guard: Guard = unguarded) -> None:
        """Mark a running import as failed. An ended import and the stored rows stay unchanged."""
        failure = (self._clock.now_ms(), reason, import_id)

        def write(connection: sqlite3.Connection) -> None:
            guard(connection)
            connection.execute(_FAIL, failure)

        await self._database.write(write)

    async def list(
        self, user_id: int, *, owner: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> KeysetPage[ImportRecord]:
        """Return a page of the user's imports, of one owner or of all, newest first. Raises BadCursorError."""
        statement = _LIST if owner is None else _LIST.replace("user_id = ?", "user_id = ? AND owner = ?")
        wanted = (MAX_REJECTIONS, user_id, *([owner] if owner is not None else []), parse_cursor(cursor), limit + 1)
        rows = await self._database.read(lambda connection: connection.execute(statement, wanted).fetchone()[0])
        return build_page([(row[0], _record(row[1:])) for row in json.loads(rows)], limit)

    async def rejected(self, import_id: str, *, user_id: int, owner: str | None = None) -> RejectedRows | None:
        """Return the stored rejected rows of an import with their cells; None if the user has no such import."""
        statement = _FIND if owner is None else f"{_FIND} AND owner = ?"
        wanted = (user_id, import_id, *([owner] if owner is not None else []))
        found = await self._database.read(lambda connection: connection.execute(statement, wanted).fetchone())
        if not found:
            return None
        seq, file_name, header = found
        return RejectedRows(file_name, tuple(json.loads(header or "[]")), self._rejected(seq << 32))

    async def _rejected(self, place: int) -> AsyncIterator[Sequence[Rejection]]:
        after, last = place, place + 0xFFFFFFFF
        while True:
            wanted = (after, last, MAX_REJECTIONS)
            rows = await self._database.read(lambda c, wanted=wanted: c.execute(_REJECTED, wanted).fetchall())  # type: ignore[misc]
            if not rows:
                return
            yield [Rejection(row, column, reason, tuple(json.loads(cells))) for row, column, reason, cells in rows]
            after = place + rows[-1][0]

    async def rows(self, import_id: str, *, first_row: int = 1, limit: int = 100) -> Sequence[dict[str, str]]:
        """Return imported rows in the file's order, from row ``first_row`` on; empty for an unknown import."""
        wanted = {"id": import_id, "first_row": first_row, "limit": limit}
        found = await self._database.read(lambda connection: connection.execute(_ROWS, wanted).fetchone())
        if not found or not found[0]:
            return []
        header = json.loads(found[0])
        return [dict(zip(header, values, strict=True)) for values in json.loads(found[1])]

    async def _import(self, run: "_Run", file: BinaryIO, upload: Upload, on_progress: OnProgress) -> None:
        cursor = run.cursor or await run.set_format(await self._open(file, upload))
        source = _BatchSource(file, cursor, limit=self._settings.max_rows, taken=run.rows_read)
        while parsed := await run_sync(source.next, limiter=self._limiter):
            await run.store(parsed)
            self._report(run, min(parsed.batch.cursor.offset, upload.size), upload.size, on_progress)
        if run.offset < upload.size:  # the file ends with padding
            self._report(run, upload.size, upload.size, on_progress)

    async def _open(self, file: BinaryIO, upload: Upload) -> OpenedCsv:
        declared = DeclaredFormat(upload.charset, self._settings.encoding, self._settings.delimiter)
        return await run_sync(open_csv, file, declared, limiter=self._limiter)

    def _report(self, run: "_Run", read: int, size: int, on_progress: OnProgress) -> None:
        message = f"{run.result.rows_stored:,} rows stored, {run.result.rows_rejected:,} rejected"
        on_progress(run.rows_read, read, size, message)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A batch, and its rows as JSON for the database."""

    batch: Batch
    rows_json: str


class _BatchSource:
    """The batches of a file up to the limit of rows; called in worker threads, one call at a time."""

    def __init__(self, file: BinaryIO, cursor: CsvCursor, *, limit: int, taken: int) -> None:
        self._file = file
        self._cursor = cursor
        self._limit = limit
        self._allowed = limit - taken
        self._batches = read_batches(file, cursor)

    def next(self) -> _Parsed | None:
        """Return the next batch, None after the last. Raises CsvError or TooManyRowsError after the valid batches."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        count = batch.accepted + len(batch.rejections)
        if count > self._allowed:
            return self._last()
        self._allowed -= count
        self._cursor = batch.cursor
        return _Parsed(batch, _encode(batch.rows))

    def _last(self) -> _Parsed | None:
        """Read the batch again, limited to the remaining rows."""
        if self._allowed <= 0:
            raise TooManyRowsError(self._limit)
        self._batches = read_batches(self._file, self._cursor, batch_rows=self._allowed)
        return self.next()


class _Run:
    """One attempt of one import: its position and its writes."""

    def __init__(self, database: Database, import_id: str, row: tuple[Any, ...], guard: Guard) -> None:
        self._database = database
        self._guard = guard
        self._import_id = import_id
        self._seq, status, header, delimiter, encoding, self.offset, number, stored, rejected, skipped, *shape = row
        kept, width, is_mended, warnings = shape
        self.is_complete = status == "completed"
        self.result = ImportResult(stored, rejected, skipped, tuple(json.loads(warnings)))
        self.cursor = None
        if header:
            columns, places = tuple(json.loads(header)), tuple(json.loads(kept))
            self.cursor = CsvCursor(self.offset, number, columns, delimiter, encoding, places, width, bool(is_mended))

    @property
    def rows_read(self) -> int:
        return self.result.rows_stored + self.result.rows_rejected

    async def set_format(self, opened: OpenedCsv) -> CsvCursor:
        """Store the file's format and the cursor after its header."""
        cursor = opened.cursor
        values = (
            _encode(cursor.header), cursor.delimiter, cursor.encoding, cursor.offset, cursor.row, _encode(cursor.kept),
            cursor.width, cursor.is_mended, opened.encoding_source, opened.delimiter_source, opened.quoting,
            _encode(opened.warnings), self._seq,
        )  # fmt: skip
        await self._change(lambda connection: connection.execute(_SET_FORMAT, values).rowcount == 1)
        self.offset = cursor.offset
        self.result = replace(self.result, warnings=opened.warnings)
        return cursor

    async def store(self, parsed: _Parsed) -> None:
        """Store a batch, its rejections and the cursor after it in one transaction."""
        batch = parsed.batch
        rejected = len(batch.rejections)
        kept = batch.rejections[: max(0, MAX_KEPT_REJECTIONS - self.result.rows_rejected)]
        rejections_json = _encode([(r.row, r.column, r.reason, r.cells) for r in kept])
        counts = (batch.accepted, rejected, batch.blank)
        advance = (batch.cursor.offset, batch.cursor.row, *counts, self._seq, self.offset)
        place = self._seq << 32

        def write(connection: sqlite3.Connection) -> bool:
            if connection.execute(_ADVANCE, advance).rowcount != 1:
                return False
            connection.execute(_STORE_ROWS, (place + batch.first_row, parsed.rows_json))
            if kept:
                connection.execute(_STORE_REJECTIONS, (place, rejections_json))
                connection.execute(_STORE_REJECTED_ROWS, (place, rejections_json))
            return True

        await self._change(write)
        self.offset = batch.cursor.offset
        before = self.result
        self.result = replace(
            before,
            rows_stored=before.rows_stored + batch.accepted,
            rows_rejected=before.rows_rejected + rejected,
            rows_skipped=before.rows_skipped + batch.blank,
        )

    async def check_stored(self) -> None:
        """Raise NothingStoredError if every row was rejected."""
        if self.result.rows_stored or not self.result.rows_rejected:
            return
        place = (self._seq << 32,)
        first = await self._database.read(lambda connection: connection.execute(_FIRST_REJECTION, place).fetchone())
        raise NothingStoredError(self.result.rows_rejected, *first)

    async def complete(self, now_ms: int) -> None:
        """Mark the import as completed."""
        values = (now_ms, self._seq, self.offset)
        await self._change(lambda connection: connection.execute(_COMPLETE, values).rowcount == 1)

    async def _change(self, write: Callable[[sqlite3.Connection], bool]) -> None:
        def guarded(connection: sqlite3.Connection) -> bool:
            self._guard(connection)
            return write(connection)

        if not await self._database.write(guarded):
            raise ImportOvertakenError(self._import_id)


def _record(row: list[Any]) -> ImportRecord:
    import_id, user_id, file, status, stored, rejected, rejections, started_ms, finished_ms, error, codec, *rest = row
    encoding_source, delimiter, delimiter_source, quoting, columns, skipped, warnings = rest
    return ImportRecord(
        id=import_id,
        user_id=user_id,
        file=file,
        status=status,
        rows_stored=stored,
        rows_rejected=rejected,
        rejections=tuple(Rejection(*rejection) for rejection in rejections),
        started_ms=started_ms,
        finished_ms=finished_ms,
        error=error,
        encoding=shown_encoding(codec) if codec else None,
        encoding_source=encoding_source,
        delimiter=delimiter,
        delimiter_source=delimiter_source,
        quoting=quoting,
        columns=None if columns is None else tuple(columns),
        rows_skipped=skipped,
        warnings=tuple(warnings),
    )
