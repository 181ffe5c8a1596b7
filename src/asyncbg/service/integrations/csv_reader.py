"""Streaming CSV reader: batches of rows, each with the exact byte offset to resume from after a crash.

``open_csv`` detects the format and returns a cursor after the header; ``read_batches`` continues from any cursor.
Memory use is one chunk and one batch, regardless of the file's size.

Accepted
    A header row, then rows with as many columns, separated by comma, semicolon, tab, bar, or the delimiter of a first
    line ``sep=;`` or a setting; LF, CRLF or CR line ends; quoted fields as in RFC 4180, which may contain delimiters,
    doubled quotes and line breaks. Header names are stripped; values are unchanged.
    Columns without name and values are left out; an unnamed column with values becomes ``column_3``. Titles and
    comments above the header and blank rows are skipped. ``OpenedCsv.warnings`` lists all of this, except blank rows,
    which batches count.
Encodings
    The byte order mark, else the declared charset, else detection; see ``csv_encoding``.
Refused as a whole (``CsvError``)
    An empty file, binary data, UTF-32; JSON, HTML or XML without columns; a header with a repeated name or more than
    1,000 columns; a row longer than 1 MiB.
Rejected row by row (``Rejection``: row and column, never the value)
    Too few or too many columns, a NUL character, bytes that are invalid in the file's encoding, a field longer than
    65,536 characters, an unclosed quote, text after a closing quote, such as from backslash escapes.

Rows are numbered as in a spreadsheet: the first row of the file is 1, and blank rows count.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, BinaryIO

from asyncbg.service.integrations.csv_columns import (
    FIELD_TOO_LONG,
    MAX_FIELD_CHARS,
    REJECTED_COLUMNS,
    Columns,
    column_names,
    column_warnings,
)
from asyncbg.service.integrations.csv_dialect import Quoting, is_blank
from asyncbg.service.integrations.csv_encoding import (
    CHUNK_BYTES,
    UTF_16,
    CsvError,
    NotCsvError,
    Source,
    content_end,
    encoding_in_words,
)
from asyncbg.service.integrations.csv_format import UNDECLARED, DeclaredFormat, lines_of, sniff
from asyncbg.service.integrations.csv_row import first_flaw, is_whole_row, raw_cells, readable, unescaped

MAX_ROW_BYTES = 1_048_576
BATCH_ROWS = 2_000
_SCAN_BYTES = 8 * 1_048_576
"""How many bytes are searched for values in unnamed columns; rows with later values are rejected."""

_LINE_ENDS = {"utf-16-le": (b"\n\0", b"\r\0"), "utf-16-be": (b"\0\n", b"\0\r")}
_MARK = "\ufeff"
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\0-\x08\x0e-\x1f\ud800-\udfff]")

_UNCLOSED = "a quoted field is not closed before the end of the file"
_BEHIND_QUOTE = "text follows a closing quote; a quote inside a quoted field is written twice"


class RowTooLongError(CsvError):
    """A row is longer than 1 MiB: a quote is not closed, or the file is not CSV."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} is longer than {MAX_ROW_BYTES:,} bytes; is a closing quote missing?")
        self.row = row


@dataclass(frozen=True, slots=True)
class CsvCursor:
    """A position in the file, after ``offset`` bytes and ``row`` rows, and the format of the rest.

    ``kept`` are the indexes of the header's columns in the file's rows, empty if they are the first ones; ``width`` is
    the number of columns in the file's header row.
    """

    offset: int
    row: int
    header: tuple[str, ...]
    delimiter: str
    encoding: str
    kept: tuple[int, ...] = ()
    width: int = 0
    is_mended: bool = False
    """Whether the file is a download of rejected rows, whose first columns hold the reasons."""


@dataclass(frozen=True, slots=True)
class OpenedCsv:
    """An opened file: the cursor after its header, and its format, declared or guessed."""

    cursor: CsvCursor
    encoding_source: Source
    delimiter_source: Source
    quoting: Quoting
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejected row and the reason. ``column`` counts from 1; None means the whole row.

    ``cells`` are the row's cells in the file, shown to its owner only.
    """

    row: int
    column: int | None
    reason: str
    cells: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of the file, and the cursor after them.

    ``rows[i]`` is the file's row ``first_row + i``; None for a rejected or blank row.
    """

    first_row: int
    rows: Sequence[list[str] | None]
    accepted: int
    rejections: tuple[Rejection, ...]
    cursor: CsvCursor

    @property
    def blank(self) -> int:
        """Return the number of blank rows."""
        return len(self.rows) - self.accepted - len(self.rejections)


def open_csv(file: BinaryIO, declared: DeclaredFormat = UNDECLARED) -> OpenedCsv:
    """Detect the format of ``file`` and read its header. Raises CsvError."""
    form = sniff(file, declared)
    dialect, codec = form.dialect, form.encoding.codec
    cursor = CsvCursor(form.start, dialect.rows_above, (), dialect.delimiter, codec)
    cursor, warnings = _Reader(file, cursor, batch_rows=1, chunk_bytes=CHUNK_BYTES).header()
    return OpenedCsv(cursor, form.encoding.source, dialect.source, dialect.quoting, (*form.warnings, *warnings))


def read_batches(
    file: BinaryIO, cursor: CsvCursor, *, batch_rows: int = BATCH_ROWS, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Batch]:
    """Yield the rows after ``cursor``, at most ``batch_rows`` at a time and about ``chunk_bytes`` bytes.

    Raises RowTooLongError after the batch of the rows before it.
    """
    return _Reader(file, cursor, batch_rows=batch_rows, chunk_bytes=chunk_bytes).batches()


class _Reader:
    """Reader that feeds lines to the csv module and tracks the byte offset of each row.

    The csv module counts the lines it has consumed, so the lines since the last batch, encoded again, give the end
    of a row. A marker line after the last one distinguishes a complete file from an unclosed quoted field.
    """

    def __init__(self, file: BinaryIO, cursor: CsvCursor, *, batch_rows: int, chunk_bytes: int) -> None:
        self._file = file
        self._cursor = cursor
        self._batch_rows = batch_rows
        self._chunk_bytes = chunk_bytes
        self._columns = Columns.of(cursor.header, cursor.kept, cursor.width, is_mended=cursor.is_mended)
        self._lines: list[str] = []  # loaded lines after the cursor
        self._sizes: list[int] | None = None  # sizes of the lines in bytes, if encoding them again may differ
        self._behind = 0  # number of lines before the cursor
        self._loaded = 0  # number of loaded lines
        self._suspect_until = 0  # lines up to here need a check of every field
        self._last: int | None = None  # the total number of lines, known at the end of the file
        self._feed = chain.from_iterable(self._load())
        self._parser = self._new_parser()
        self._parser_began = 0  # lines consumed by earlier parsers
        self._rows: list[list[str]] = []
        self._ends: list[int] = []  # the line after each row
        self._flaws: dict[int, tuple[int | None, str]] = {}  # column and reason, by index in the rows
        self._error: CsvError | None = None

    def batches(self) -> Iterator[Batch]:
        self._start()
        while self._take():
            yield self._batch()
        if self._error:
            raise self._error

    def header(self) -> tuple[CsvCursor, list[str]]:
        """Return the cursor after the header row, and warnings about its columns."""
        self._start()
        while self._take():
            row = self._rows[0]
            flaws = tuple(self._flaws.values())
            cursor = self._advance()
            if flaws or _UNPRINTABLE.search("".join(row)):
                raise NotCsvError(f"the header row cannot be read: {flaws[0][1] if flaws else 'it is not text'}")
            if not is_blank(row):
                return self._named([name.strip() for name in row], cursor)
        raise self._error or NotCsvError("the file holds nothing but blank lines; send a CSV file with a header row")

    def _named(self, names: list[str], cursor: CsvCursor) -> tuple[CsvCursor, list[str]]:
        first = len(REJECTED_COLUMNS) if tuple(names[: len(REJECTED_COLUMNS)]) == REJECTED_COLUMNS else 0
        names = [unescaped(name) for name in names] if first else names
        unnamed = {place for place, name in enumerate(names) if not name}
        valued = self._valued(unnamed) if unnamed else set()
        kept = [place for place, name in enumerate(names) if place >= first and (name or place in valued)]
        header = column_names(names, kept)
        warnings = column_warnings(sorted(valued), sorted(unnamed - valued), header, kept, is_mended=bool(first))
        is_plain = kept == list(range(len(kept)))
        return replace(
            cursor, header=tuple(header), kept=() if is_plain else tuple(kept), width=len(names), is_mended=bool(first)
        ), warnings

    def _valued(self, unnamed: set[int]) -> set[int]:
        """Return those of the columns that have a value in a following row."""
        found: set[int] = set()
        self._batch_rows, limit = BATCH_ROWS, self._cursor.offset + _SCAN_BYTES
        while found != unnamed and self._cursor.offset < limit and self._take():
            for row in self._rows:
                found |= {place for place in unnamed - found if place < len(row) and row[place].strip()}
            self._advance()
        return found

    def _start(self) -> None:
        self._end, _, _ = content_end(self._file, self._cursor.encoding)
        self._file.seek(self._cursor.offset)

    def _new_parser(self) -> Any:
        return csv.reader(self._feed, delimiter=self._cursor.delimiter, strict=True)

    def _take(self) -> bool:
        """Parse the next rows: up to the batch size, or to the end of what is loaded."""
        self._rows, self._ends, self._flaws = [], [], {}
        while not self._error:
            try:
                self._parse()
            except csv.Error as error:
                self._skip_row(is_too_long="limit" in str(error))
            except CsvError as error:  # the rows before it are valid
                self._error = error
            else:
                break
        self._drop_marker()
        self._refuse_long_rows()
        return bool(self._rows)

    def _parse(self) -> None:
        rows, ends, parser, began = self._rows, self._ends, self._parser, self._parser_began
        if self._is_full():
            return
        for row in parser:
            line = began + parser.line_num
            rows.append(row)
            ends.append(line)
            if line >= self._loaded or len(rows) >= self._batch_rows:
                return

    def _is_full(self) -> bool:
        return bool(self._ends) and (self._ends[-1] >= self._loaded or len(self._rows) >= self._batch_rows)

    def _skip_row(self, *, is_too_long: bool) -> None:
        """Skip the current row: up to the line where its quotes are balanced, or to the next well-formed row."""
        start, end = self._row_start(), self._parser_began + self._parser.line_num
        if self._last is not None and end > self._last:  # the marker is inside the row: a quote is not closed
            self._flaws[len(self._rows)] = (None, _UNCLOSED)
            self._rows.append([])
            self._ends.append(self._last)
            self._parser, self._parser_began = self._new_parser(), end
            return
        quotes = sum(line.count('"') for line in self._lines[start - self._behind : end - self._behind])
        delimiter, width = self._cursor.delimiter, self._columns.needed
        try:
            while quotes % 2 and (line := next(self._feed, None)) is not None:
                if not is_too_long and is_whole_row(line, delimiter, width):
                    self._feed = chain((line,), self._feed)
                    break
                quotes += line.count('"')
                end += 1
        except CsvError as error:
            self._error = error
        if self._last is not None:
            end = min(end, self._last)
        self._parser, self._parser_began = self._new_parser(), end
        self._flaws[len(self._rows)] = (None, FIELD_TOO_LONG) if is_too_long else self._behind_quote(start, end)
        self._rows.append([])
        self._ends.append(end)

    def _behind_quote(self, start: int, end: int) -> tuple[int | None, str]:
        column = first_flaw(self._text(start, end), self._cursor.delimiter)
        lines = f"; {end - start} lines were taken for this row" if end - start > 1 else ""
        return column, _BEHIND_QUOTE + lines

    def _drop_marker(self) -> None:
        if self._last is not None and self._ends and self._ends[-1] > self._last:
            self._rows.pop()
            self._ends.pop()

    def _refuse_long_rows(self) -> None:
        if self._suspect_until <= self._behind and not self._has_line_breaks():
            return
        start = self._behind
        for index, end in enumerate(self._ends):
            if self._size(start, end) > MAX_ROW_BYTES:
                self._error = RowTooLongError(self._cursor.row + index + 1)
                del self._rows[index:], self._ends[index:]
                return
            start = end

    def _batch(self) -> Batch:
        first_row = self._cursor.row + 1
        deep = self._suspect_until > self._behind or self._has_line_breaks()
        rows: Sequence[list[str] | None] = self._rows
        rejections: list[Rejection] = []
        if deep or self._flaws or not self._columns.is_plain(self._rows):
            rows = []
            for index, row in enumerate(self._rows):
                taken = self._validate(index, row, deep=deep)
                if isinstance(taken, Rejection):
                    rejections.append(taken)
                rows.append(taken if isinstance(taken, list) else None)
        accepted = len(rows) - (rows.count(None) if rows is not self._rows else 0)
        return Batch(first_row, rows, accepted, tuple(rejections), self._advance())

    def _validate(self, index: int, row: list[str], *, deep: bool) -> list[str] | Rejection | None:
        """Return the row's values, its rejection, or None for a blank row."""
        flaw = self._flaws.get(index)
        if not flaw:
            if is_blank(row):
                return None
            taken = self._columns.values(row)
            if isinstance(taken, list):
                flaw = self._flaw_of_text(row) if deep else None
                if not flaw:
                    return taken
            else:
                flaw = taken
        return Rejection(self._cursor.row + index + 1, *flaw, cells=self._cells(index, row))

    def _flaw_of_text(self, row: list[str]) -> tuple[int, str] | None:
        joined = "".join(row)
        if len(joined) <= MAX_FIELD_CHARS and not _UNREADABLE.search(joined):
            return None
        for column, value in enumerate(row, 1):
            if len(value) > MAX_FIELD_CHARS:
                return column, FIELD_TOO_LONG
            if found := _UNREADABLE.search(value):
                name = encoding_in_words(self._cursor.encoding)
                return column, "contains a NUL character" if found[0] == "\0" else f"is not valid {name}"
        return None

    def _cells(self, index: int, row: list[str]) -> tuple[str, ...]:
        """Return the row's cells for the download of rejected rows; empty for a row that is too long."""
        if index in self._flaws:
            text = self._text(self._ends[index - 1] if index else self._behind, self._ends[index])
            row = raw_cells(text, self._cursor.delimiter) if len(text) <= MAX_FIELD_CHARS else []
        return readable(self._columns.restored(row)) if sum(map(len, row)) <= MAX_FIELD_CHARS else ()

    def _advance(self) -> CsvCursor:
        """Move the cursor after the parsed rows and drop their lines."""
        behind = self._row_start()
        offset = self._cursor.offset + self._size(self._behind, behind)
        self._cursor = replace(self._cursor, offset=offset, row=self._cursor.row + len(self._rows))
        del self._lines[: behind - self._behind]
        if self._sizes is not None:
            del self._sizes[: behind - self._behind]
        self._behind = behind
        self._rows, self._ends, self._flaws = [], [], {}
        return self._cursor

    def _row_start(self) -> int:
        """Return the number of the line at which the next row begins."""
        return self._ends[-1] if self._ends else self._behind

    def _has_line_breaks(self) -> bool:
        return self._row_start() - self._behind != len(self._rows)

    def _text(self, first: int, last: int) -> str:
        return "".join(self._lines[first - self._behind : last - self._behind])

    def _size(self, first: int, last: int) -> int:
        """Return the size in bytes of the lines from ``first`` to ``last``, exclusive."""
        if self._sizes is not None:
            return sum(self._sizes[first - self._behind : last - self._behind])
        codec = self._cursor.encoding
        return len(self._text(first, last).encode(codec, "surrogatepass" if codec in UTF_16 else "surrogateescape"))

    def _load(self) -> Iterator[Iterable[str]]:
        """Yield the complete lines of each chunk; an incomplete line waits for the next chunk."""
        rest = b""
        while chunk := self._file.read(min(self._chunk_bytes, max(0, self._end - self._file.tell()))):
            rest += chunk
            cut = _last_line_end(rest, self._cursor.encoding)
            if cut:
                yield self._lines_of(rest[:cut])
                rest = rest[cut:]
            unfinished = self._size(self._row_start(), self._loaded) if self._row_start() < self._loaded else 0
            if unfinished + len(rest) > MAX_ROW_BYTES:
                raise RowTooLongError(self._cursor.row + len(self._rows) + 1)
        if rest:
            yield self._lines_of(rest)
        self._last = self._loaded
        yield ["end"]

    def _lines_of(self, data: bytes) -> Iterable[str]:
        found, first = lines_of(data, self._cursor.encoding), self._loaded
        if found.sizes is not None:
            self._sizes = (self._sizes or []) + found.sizes
        self._lines += found.lines
        self._loaded += len(found.lines)
        if not found.is_valid or "\0" in found.text or max(map(len, found.lines)) > MAX_FIELD_CHARS:
            self._suspect_until = self._loaded
        return self._unmarked(found.lines, first) if _MARK in found.text else found.lines

    def _unmarked(self, lines: Sequence[str], first: int) -> Iterator[str]:
        """Yield the lines without a byte order mark at the start of a row, which concatenated files contain."""
        for number, line in enumerate(lines, first):
            yield line[1:] if line.startswith(_MARK) and self._row_start() == number else line


def _last_line_end(data: bytes, encoding: str) -> int:
    """Return the end of the last complete line; a CR at the very end may be half of a CRLF."""
    if encoding not in _LINE_ENDS:
        return max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
    feed, carriage = _LINE_ENDS[encoding]
    even = len(data) // 2 * 2
    return max(_rfind_unit(data, feed, even), _rfind_unit(data, carriage, even - 2)) + 2


def _rfind_unit(data: bytes, unit: bytes, end: int) -> int:
    """Return the last index of ``unit`` on a two-byte boundary before ``end``, or -2."""
    found = data.rfind(unit, 0, max(end, 0))
    while found % 2 and found >= 0:
        found = data.rfind(unit, 0, found + 1)
    return found if found >= 0 else -2
