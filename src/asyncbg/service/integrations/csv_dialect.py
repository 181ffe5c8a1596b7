"""Detection of a CSV file's delimiter, quoting and header row."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from asyncbg.service.integrations.csv_encoding import Source

Quoting = Literal["none", "minimal", "all"]

DELIMITERS = "\t|;,"
"""The candidate delimiters, the rarer first: a tie goes to the rarer."""
SAMPLE_CHARS = 131_072
_SAMPLE_ROWS = 500
_MAX_PREAMBLE_ROWS = 30
_CLEAR_FIT = 0.8
_WEAK_FIT = 0.5
_SEP = re.compile(r"""(["']?)sep=([^\w\s"'\0\ud800-\udfff\ufffd]|\t)\2*\1\2*[ ]*(?:\r\n|\r|\n|\Z)""", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?[\d.,:/\s%€$£-]*\d[\d.,:/\s%€$£-]*")
_ONE_COLUMN = ",;\t|"

Row = list[str]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The delimiter and quoting of a file, and the number of lines and rows above its header."""

    delimiter: str
    source: Source
    quoting: Quoting
    lines_above: int
    rows_above: int
    is_table: bool
    """Whether there are at least two columns, and most rows have as many as the header."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Reading:
    """The rows of a text under one delimiter, the line number after each, and the index of the header."""

    delimiter: str
    rows: Sequence[Row]
    ends: Sequence[int]
    at: int
    fit: float

    @property
    def header(self) -> Row:
        return self.rows[self.at]

    @property
    def width(self) -> int:
        return _filled(self.header)

    @property
    def is_prose(self) -> bool:
        """Whether blanks follow the delimiter, as in the commas of a sentence."""
        return any(cell.startswith(" ") for row in self.rows[self.at :] for cell in row[1:])


def separator_line(text: str) -> tuple[str, int] | None:
    """Return the delimiter in Excel's first line ``sep=;`` and the length of that line; None without one."""
    found = _SEP.match(text)
    return (found[2], found.end()) if found else None


def find_dialect(text: str, *, whole: bool, delimiter: str | None) -> Dialect | None:
    """Return the dialect of ``text``, the start of a file; ``delimiter`` is a declared one. None for a blank text."""
    text = text[:SAMPLE_CHARS]
    whole = whole and len(text) < SAMPLE_CHARS
    readings = [found for one in delimiter or DELIMITERS if (found := _read(text, one, whole=whole))]
    if not readings:
        return None
    best = _best(readings)
    first = next(index for index, row in enumerate(best.rows) if not is_blank(row))
    return Dialect(
        delimiter=best.delimiter,
        source="declared" if delimiter else "guessed",
        quoting=_quoting(text, best),
        lines_above=best.ends[best.at - 1] if best.at else 0,
        rows_above=best.at,
        is_table=best.width > 1 and best.fit >= _CLEAR_FIT and best.at == first and len(best.rows) > best.at + 1,
        warnings=tuple(_warnings(best, first, readings, is_declared=delimiter is not None)),
    )


def is_blank(row: Sequence[str]) -> bool:
    """Whether all cells of a row are blank."""
    return not "".join(row).strip()


def _best(readings: Sequence[_Reading]) -> _Reading:
    """Return the reading under which most rows fit the header.

    A tie goes to the delimiter without blanks behind it, then to the rarer. If no delimiter splits the header, the file
    has one column, and the delimiter that splits no row is best.
    """
    tables = [reading for reading in readings if reading.width > 1]
    if tables:
        return max(tables, key=lambda one: (one.fit, not one.is_prose, -DELIMITERS.find(one.delimiter)))
    return max(readings, key=lambda one: (one.fit, len(one.header), -_ONE_COLUMN.find(one.delimiter)))


def _read(text: str, delimiter: str, *, whole: bool) -> _Reading | None:
    rows: list[Row] = []
    ends: list[int] = []
    parser = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in islice(parser, _SAMPLE_ROWS):
            rows.append(row)
            ends.append(parser.line_num)
    except csv.Error:  # a field over the parser's limit: use the rows before it
        whole = True
    if not whole and 1 < len(rows) < _SAMPLE_ROWS:
        rows.pop()  # truncated at the end of the sample
    filled = [index for index, row in enumerate(rows) if not is_blank(row)]
    if not filled:
        return None
    at = _header_at(rows, filled)
    fit = _fit(rows, filled, at)
    if at != filled[0] and _fit(rows, [index for index in filled if index >= at], at) < _WEAK_FIT:
        at = filled[0]
        fit = _fit(rows, filled, at)
    return _Reading(delimiter, rows, ends, at, fit)


def _header_at(rows: Sequence[Row], filled: Sequence[int]) -> int:
    """Return the index of the first row that is not a title or comment; the first row if no table follows."""
    widths = Counter(len(rows[index]) for index in filled if len(rows[index]) > 1)
    [(width, many)] = widths.most_common(1) or [(1, 0)]
    if many < 2:
        return filled[0]
    for place, index in enumerate(filled[: min(len(filled) - 1, _MAX_PREAMBLE_ROWS)]):
        below = [rows[other] for other in filled[place + 1 :]]
        if not _is_above(rows[index], width, below):
            is_header = place == 0 or (len(rows[index]) == width and _can_be_header(rows[index]))
            return index if is_header else filled[0]
    return filled[0]


def _is_above(row: Row, width: int, below: Sequence[Row]) -> bool:
    """Whether a row is a title or a comment above the header of a table of ``width`` columns."""
    if row[0].lstrip().startswith("#"):
        is_sentence = len(row) > 1 and all(cell.startswith(" ") for cell in row[1:])
        others = any(cell.startswith(" ") for one in below for cell in one[1:])
        return len(row) != width or (is_sentence and not others)
    if len(row) == 1:
        return True
    cells = [cell.strip() for cell in row if cell.strip()]
    if len(cells) != 1 or len(row) != width or len(below) < 2 or not (width > 2 or " " in cells[0]):
        return False
    return _filled(below[0]) > 1 and _can_be_header(below[0])  # a title that a spreadsheet filled up with empty cells


def _can_be_header(row: Row) -> bool:
    """Whether the cells can be column names: at least two, no numbers, no repeats, not the words of a sentence."""
    names = [cell for cell in row if cell.strip()]
    if len(names) < 2 or len(set(names)) < len(names) or all(cell.startswith(" ") for cell in row[1:]):
        return False
    return not any(map(_NUMBER.fullmatch, names))


def _fit(rows: Sequence[Row], filled: Sequence[int], at: int) -> float:
    """Return the fraction of the other rows that fit the header; rows above it do not fit."""
    needed, width = _filled(rows[at]), len(rows[at])
    others = [rows[index] for index in filled if index != at]
    if not others:
        return 1.0
    fits = sum(needed <= len(rows[index]) and _filled(rows[index]) <= width for index in filled if index > at)
    return fits / len(others)


def _filled(row: Sequence[str]) -> int:
    """Return the number of columns without trailing empty ones."""
    return next((place for place in range(len(row), 0, -1) if row[place - 1].strip()), 0)


def _quoting(text: str, reading: _Reading) -> Quoting:
    if '"' not in text:
        return "none"
    quoted = len(re.findall(f'(?:^|{re.escape(reading.delimiter)})"', text, re.MULTILINE))
    return "all" if quoted >= sum(map(len, reading.rows)) else "minimal"


def _warnings(best: _Reading, first: int, readings: Sequence[_Reading], *, is_declared: bool) -> list[str]:
    warnings = []
    if best.at > first:
        rows = f"row {first + 1} is" if best.at == first + 1 else f"rows {first + 1} to {best.at} are"
        warnings.append(f"{rows} above the header and not part of the table; row {best.at + 1} was read as the header")
    elif best.header[0].lstrip().startswith("#"):
        warnings.append(f"the header, row {best.at + 1}, begins with #; is it a comment?")
    rivals = [other for other in readings if other.width > 1]
    if not is_declared and len(rivals) > 1 and best.fit < _WEAK_FIT:
        warnings.append("the delimiter is a weak guess: no delimiter gives most of the rows the columns of the header")
    if len(best.header) == 1 and any(_cuts(other) for other in readings):
        warnings.append("the file was read as one column, though its rows hold what separates columns elsewhere")
    if not any(not is_blank(row) for row in best.rows[best.at + 1 :]):
        warnings.append("there are no rows below the header")
    return warnings


def _cuts(reading: _Reading) -> bool:
    """Whether a delimiter splits most of the rows."""
    return sum(_filled(row) > 1 for row in reading.rows) * 2 > sum(not is_blank(row) for row in reading.rows)
