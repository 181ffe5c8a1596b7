"""Read CSV as it comes, in batches, each with the exact byte to go on from after a crash.

``open_csv`` looks at the start of a file and answers a cursor behind its header; ``read_batches`` goes on from any
cursor. Memory stays flat: one chunk and one batch at a time, whatever the file's size.

What is accepted
    A header row, then rows of as many columns; comma, semicolon, tab or bar between them (the header and the rows
    after it decide); LF, CRLF or CR line ends; quoted fields as in RFC 4180, with delimiters, doubled quotes and line
    breaks in them. Blank lines are skipped. Header names lose the spaces around them; values are kept as they are.
Encodings
    UTF-8 with or without a byte order mark, UTF-16 with one, and Windows-1252 (which is Latin-1 with the
    typographer's signs): it is taken when the first text that is not ASCII is not UTF-8 in the main.
What is refused as a whole (``CsvError``)
    An empty file, binary data, JSON, HTML or XML, UTF-16 without a byte order mark, UTF-32; a header with an empty or
    repeated name or more than 1,000 columns; a row longer than 1 MiB.
What is rejected row by row (``Rejection``: row and column, never the value)
    Too few or too many columns, a NUL character, bytes that are not valid in the file's encoding, a field longer than
    65,536 characters, a quote that is never closed.

Rows are numbered as a spreadsheet numbers them: the header is row 1, and a blank line counts.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import BinaryIO

from asyncbg.services.csv_format import CHUNK_BYTES, CsvError, NotCsvError, sniff

MAX_COLUMNS = 1_000
MAX_FIELD_CHARS = 65_536
MAX_ROW_BYTES = 1_048_576
BATCH_ROWS = 2_000

_ENCODING_NAMES = {"utf-8": "UTF-8", "cp1252": "Windows-1252", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}
_LINE_ENDS = {"utf-16-le": (b"\n\0", b"\r\0"), "utf-16-be": (b"\0\n", b"\0\r")}
_OTHER_LINE_ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\0-\x08\x0e-\x1f\ud800-\udfff]")

_UNCLOSED = "a quoted field is not closed before the end of the file"
_FIELD_TOO_LONG = f"a field is longer than {MAX_FIELD_CHARS:,} characters"


class HeaderError(CsvError):
    """The header row cannot name the columns."""


class RowTooLongError(CsvError):
    """A row does not end within a mebibyte: a quote is not closed, or this is not CSV."""

    def __init__(self, row: int) -> None:
        """Name the row."""
        super().__init__(f"row {row} is longer than {MAX_ROW_BYTES:,} bytes; is a closing quote missing?")
        self.row = row


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where reading goes on: after ``offset`` bytes and ``row`` rows; the rest says how to read what follows."""

    offset: int
    row: int
    header: tuple[str, ...]
    delimiter: str
    encoding: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one row was not taken. ``column`` counts from 1; None says that the whole row is meant."""

    row: int
    column: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows in the file's order, and where to go on.

    ``rows[i]`` is the file's row ``first_row + i``; None stands for one that was rejected or is blank.
    """

    first_row: int
    rows: Sequence[list[str] | None]
    accepted: int
    rejections: tuple[Rejection, ...]
    cursor: Cursor


def open_csv(file: BinaryIO) -> Cursor:
    """Find out how ``file`` is written and read its header. Raises CsvError when that cannot be done."""
    form = sniff(file)
    cursor = Cursor(offset=form.start, row=0, header=(), delimiter=form.delimiter, encoding=form.encoding)
    return _Reader(file, cursor, batch_rows=1, chunk_bytes=CHUNK_BYTES).header()


def read_batches(
    file: BinaryIO, cursor: Cursor, *, batch_rows: int = BATCH_ROWS, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Batch]:
    """Yield the rows after ``cursor``, at most ``batch_rows`` at a time and about ``chunk_bytes`` bytes.

    Raises RowTooLongError behind the batch of the rows before it.
    """
    return _Reader(file, cursor, batch_rows=batch_rows, chunk_bytes=chunk_bytes).batches()


class _Reader:
    """Feeds the csv module with lines and keeps count of the bytes that each row took.

    The csv module says how many lines it has taken, so the lines since the last batch, encoded again, give a row's
    exact end. A marker line behind the last one tells a file that ended from one that ended inside a quoted field.
    """

    def __init__(self, file: BinaryIO, cursor: Cursor, *, batch_rows: int, chunk_bytes: int) -> None:
        self._file = file
        self._cursor = cursor
        self._batch_rows = batch_rows
        self._chunk_bytes = chunk_bytes
        self._escape = "surrogatepass" if cursor.encoding in _LINE_ENDS else "surrogateescape"
        self._lines: list[str] = []  # loaded and not yet behind the cursor
        self._behind = 0  # lines behind the cursor
        self._loaded = 0  # lines loaded in all
        self._suspect_until = 0  # lines up to here hold something that needs a look at every field
        self._last: int | None = None  # the number of lines in all, known at the end of the file
        self._feed = chain.from_iterable(self._load())
        self._parser = csv.reader(self._feed, delimiter=cursor.delimiter)
        self._parser_began = 0  # lines taken before this parser was made
        self._rows: list[list[str]] = []
        self._ends: list[int] = []  # the line behind each of the rows
        self._flaws: dict[int, str] = {}  # by index in the rows
        self._error: CsvError | None = None

    def batches(self) -> Iterator[Batch]:
        self._file.seek(self._cursor.offset)
        while self._take():
            yield self._batch()
        if self._error:
            raise self._error

    def header(self) -> Cursor:
        self._file.seek(self._cursor.offset)
        while self._take():
            names = [name.strip() for name in self._rows[0]]
            flaws = tuple(self._flaws.values())
            cursor = self._advance()
            if flaws or _UNPRINTABLE.search("".join(names)):
                raise NotCsvError(f"the header row cannot be read: {flaws[0] if flaws else 'it is not text'}")
            if names:
                _check_header(names)
                return replace(cursor, header=tuple(names))
        raise self._error or NotCsvError("the file holds nothing but blank lines; send a CSV file with a header row")

    def _take(self) -> bool:
        """Parse the next rows: up to the batch size, or to the end of what is loaded."""
        self._rows, self._ends, self._flaws = [], [], {}
        while not self._error:
            try:
                self._parse()
            except csv.Error:  # in the lenient mode only a field over its limit raises
                self._flaws[len(self._rows)] = _FIELD_TOO_LONG
                self._skip_row()
            except CsvError as error:  # the rows before it are still good
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

    def _skip_row(self) -> None:
        """Give up on the row being parsed: go to the line where its quotes are even again."""
        start, end = self._row_start(), self._parser_began + self._parser.line_num
        quotes = sum(line.count('"') for line in self._lines[start - self._behind : end - self._behind])
        try:
            while quotes % 2 and (line := next(self._feed, None)) is not None:
                quotes += line.count('"')
                end += 1
        except CsvError as error:
            self._error = error
        self._parser = csv.reader(self._feed, delimiter=self._cursor.delimiter)
        self._parser_began = end
        self._rows.append([])
        self._ends.append(end)

    def _drop_marker(self) -> None:
        if self._last is None or not self._ends or self._ends[-1] <= self._last:
            return
        row = self._rows.pop()
        self._ends.pop()
        if self._row_start() < self._last:  # the marker is not alone: a quoted field swallowed it
            self._flaws[len(self._rows)] = _UNCLOSED
            self._rows.append(row)
            self._ends.append(self._last)

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
        width = len(self._cursor.header)
        rows: Sequence[list[str] | None] = self._rows
        rejections: list[Rejection] = []
        accepted = len(rows)
        if deep or self._flaws or set(map(len, self._rows)) != {width}:
            rows = []
            for index, row in enumerate(self._rows):
                rejection = self._judge(first_row + index, row, self._flaws.get(index), deep=deep)
                if rejection:
                    rejections.append(rejection)
                rows.append(row if row and not rejection else None)
            accepted = len(rows) - rows.count(None)
        return Batch(first_row, rows, accepted, tuple(rejections), self._advance())

    def _judge(self, number: int, row: list[str], flaw: str | None, *, deep: bool) -> Rejection | None:
        width = len(self._cursor.header)
        if flaw:
            return Rejection(number, None, flaw)
        if row and len(row) != width:
            return Rejection(number, None, f"expected {_columns(width)}, found {len(row):,}")
        if deep:
            joined = "".join(row)
            if len(joined) > MAX_FIELD_CHARS or _UNREADABLE.search(joined):
                return next(filter(None, (self._judge_field(number, *item) for item in enumerate(row, 1))), None)
        return None

    def _judge_field(self, number: int, column: int, field: str) -> Rejection | None:
        if len(field) > MAX_FIELD_CHARS:
            return Rejection(number, column, _FIELD_TOO_LONG)
        found = _UNREADABLE.search(field)
        if found and found[0] == "\0":
            return Rejection(number, column, "contains a NUL character")
        if found:
            return Rejection(number, column, f"is not valid {_ENCODING_NAMES[self._cursor.encoding]}")
        return None

    def _advance(self) -> Cursor:
        """Put the cursor behind the rows taken and let go of their lines."""
        behind = self._row_start()
        offset = self._cursor.offset + self._size(self._behind, behind)
        self._cursor = replace(self._cursor, offset=offset, row=self._cursor.row + len(self._rows))
        del self._lines[: behind - self._behind]
        self._behind = behind
        self._rows, self._ends, self._flaws = [], [], {}
        return self._cursor

    def _row_start(self) -> int:
        """The line that the row after the last one taken begins with."""
        return self._ends[-1] if self._ends else self._behind

    def _has_line_breaks(self) -> bool:
        return self._row_start() - self._behind != len(self._rows)

    def _size(self, first: int, last: int) -> int:
        """How many bytes of the file the lines from ``first`` up to ``last`` are."""
        text = "".join(self._lines[first - self._behind : last - self._behind])
        return len(text.encode(self._cursor.encoding, self._escape))

    def _load(self) -> Iterator[list[str]]:
        """Read chunk after chunk and yield its whole lines; a line that is cut off waits for the next chunk."""
        rest = b""
        while chunk := self._file.read(self._chunk_bytes):
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

    def _lines_of(self, data: bytes) -> list[str]:
        try:
            text = data.decode(self._cursor.encoding)
            suspect = "\0" in text
        except UnicodeDecodeError:
            text = self._decode_leniently(data)
            suspect = True
        lines = _split(text)
        self._lines += lines
        self._loaded += len(lines)
        if suspect or max(map(len, lines)) > MAX_FIELD_CHARS:
            self._suspect_until = self._loaded
        return lines

    def _decode_leniently(self, data: bytes) -> str:
        """Mark what cannot be decoded with a surrogate that encodes to the same bytes again."""
        if self._escape == "surrogatepass" and len(data) % 2:
            return data[:-1].decode(self._cursor.encoding, self._escape) + "\udfff"  # cut off inside the last character
        return data.decode(self._cursor.encoding, self._escape)


def _check_header(names: Sequence[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise HeaderError(f"the header has {len(names):,} columns; at most {MAX_COLUMNS:,} are taken")
    seen: dict[str, int] = {}
    for column, name in enumerate(names, 1):
        if not name:
            raise HeaderError(f"column {column} of the header has no name")
        if len(name) > MAX_FIELD_CHARS:
            raise HeaderError(f"column {column} of the header: {_FIELD_TOO_LONG}")
        if name in seen:
            raise HeaderError(f"column {column} of the header has the same name as column {seen[name]}")
        seen[name] = column


def _split(text: str) -> list[str]:
    """Cut behind each LF, CRLF and CR; ``splitlines`` is four times as fast but knows more line ends than CSV has."""
    if any(end in text for end in _OTHER_LINE_ENDS):
        return list(io.StringIO(text, newline=""))
    return text.splitlines(keepends=True)


def _columns(count: int) -> str:
    return f"{count:,} column" + "s" * (count != 1)


def _last_line_end(data: bytes, encoding: str) -> int:
    """The position behind the last line that is surely whole: a CR at the very end may be half of a CRLF."""
    if encoding not in _LINE_ENDS:
        return max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
    feed, carriage = _LINE_ENDS[encoding]
    even = len(data) // 2 * 2
    return max(_rfind_unit(data, feed, even), _rfind_unit(data, carriage, even - 2)) + 2


def _rfind_unit(data: bytes, unit: bytes, end: int) -> int:
    """The last place where ``unit`` stands on a two-byte boundary before ``end``; -2 when there is none."""
    found = data.rfind(unit, 0, max(end, 0))
    while found % 2 and found >= 0:
        found = data.rfind(unit, 0, found + 1)
    return found if found >= 0 else -2
