"""Analysis of a malformed CSV row, its raw cells, and the escaping of formulas."""

import csv
import re
from collections.abc import Sequence

_UNREADABLE = re.compile("[\0\ud800-\udfff]")


def _field(delimiter: str) -> re.Pattern[str]:
    """Return the pattern of a well-formed field: quoted as in RFC 4180, or not beginning with a quote."""
    one = re.escape(delimiter)
    return re.compile(f'(?:"((?:[^"]|"")*)"|((?!")[^{one}\r\n]*))(?={one}|[\r\n]*\\Z)')


def first_flaw(text: str, delimiter: str) -> int | None:
    """Return the column, from 1, of the first field with text after its closing quote; None without one."""
    pattern, at, column = _field(delimiter), 0, 1
    while at <= len(text):
        found = pattern.match(text, at)
        if not found:
            return column
        at, column = found.end() + 1, column + 1
        if found.end() >= len(text.rstrip("\r\n")):
            break
    return None


def raw_cells(text: str, delimiter: str) -> list[str]:
    """Return the cells of a malformed row; a broken field keeps its quotes and ends at the next delimiter."""
    pattern, text, at = _field(delimiter), text.rstrip("\r\n"), 0
    cells = []
    while at <= len(text):
        found = pattern.match(text, at)
        if found:
            cells.append(found[2] if found[1] is None else found[1].replace('""', '"'))
            at = found.end() + 1
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            cells.append(text[at:end])
            at = end + 1
    return cells


def is_whole_row(line: str, delimiter: str, width: int) -> bool:
    """Whether a line alone is a row as in RFC 4180 with ``width`` columns, at least two."""
    one = re.escape(delimiter)
    cell = f'(?:"(?:[^"]|"")*"|[^"{one}\r\n]*)'
    if width < 2 or not re.fullmatch(f"{cell}(?:{one}{cell})*[\r\n]*", line):
        return False
    return [len(row) for row in csv.reader([line], delimiter=delimiter)] == [width]


def readable(cells: Sequence[str]) -> tuple[str, ...]:
    """Return the cells with a replacement character for each NUL and surrogate."""
    return tuple(_UNREADABLE.sub("\ufffd", cell) for cell in cells)


# A formula begins at the start of a cell, or after a character that another program may take for a delimiter (OWASP,
# "CSV Injection"); quotes do not help there. Some programs accept the full-width forms too.
CELL_START = r"(\A|[,;|\t\r\n])([ \u00a0]*)"
FORMULA_CHARS = r"[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n]"
_FORMULA = re.compile(f"{CELL_START}(?='*{FORMULA_CHARS})")
_TEXT = re.compile(f"{CELL_START}'(?='*{FORMULA_CHARS})")


def escaped(cell: str) -> str:
    """Return the cell with a ``'`` before each formula, and before each ``'`` that :func:`unescaped` would remove."""
    return _FORMULA.sub(r"\1\2'", cell)


def unescaped(cell: str) -> str:
    """Return the original cell of :func:`escaped`."""
    return _TEXT.sub(r"\1\2", cell)
