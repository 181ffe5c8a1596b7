"""One row of a CSV file looked at closely: what is wrong with its quotes, and its cells as they are written."""

import csv
import re
from collections.abc import Sequence

_UNREADABLE = re.compile("[\0\ud800-\udfff]")


def _field(delimiter: str) -> re.Pattern[str]:
    """A well-formed field up to the delimiter or the end of the row: quoted as in RFC 4180, or not begun by a quote."""
    one = re.escape(delimiter)
    return re.compile(f'(?:"((?:[^"]|"")*)"|((?!")[^{one}\r\n]*))(?={one}|[\r\n]*\\Z)')


def first_flaw(text: str, delimiter: str) -> int | None:
    """The column, from 1, of the first field of a row that has text behind its closing quote."""
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
    """The cells of a row that is not well-formed: a broken field is kept with its quotes, up to the next delimiter."""
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
    """Whether a line by itself is a row as RFC 4180 has it, of ``width`` columns, two or more."""
    one = re.escape(delimiter)
    cell = f'(?:"(?:[^"]|"")*"|[^"{one}\r\n]*)'
    if width < 2 or not re.fullmatch(f"{cell}(?:{one}{cell})*[\r\n]*", line):
        return False
    return [len(row) for row in csv.reader([line], delimiter=delimiter)] == [width]


def readable(cells: Sequence[str]) -> tuple[str, ...]:
    """The cells with a replacement character for what is no text."""
    return tuple(_UNREADABLE.sub("\ufffd", cell) for cell in cells)


# What begins a formula, at the start of a cell or behind what another program may take for the end of one (OWASP, "CSV
# Injection"): quotes do not help against a program that separates by semicolons. The wide forms begin one in some.
CELL_START = r"(\A|[,;|\t\r\n])([ \u00a0]*)"
FORMULA_CHARS = r"[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n]"
_FORMULA = re.compile(f"{CELL_START}(?='*{FORMULA_CHARS})")
_TEXT = re.compile(f"{CELL_START}'(?='*{FORMULA_CHARS})")


def escaped(cell: str) -> str:
    """The cell with a ``'`` before what a spreadsheet takes for a formula, and before such a ``'`` of its own."""
    return _FORMULA.sub(r"\1\2'", cell)


def unescaped(cell: str) -> str:
    """The cell without the ``'`` of :func:`escaped`, exactly as it was."""
    return _TEXT.sub(r"\1\2", cell)
