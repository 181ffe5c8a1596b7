"""The columns of a CSV file: their names, and which cells of a row are their values."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from asyncbg.service.integrations.csv_dialect import is_blank
from asyncbg.service.integrations.csv_encoding import CsvError
from asyncbg.service.integrations.csv_row import unescaped

MAX_COLUMNS = 1_000
MAX_FIELD_CHARS = 65_536
REJECTED_COLUMNS = ("rejected_row", "rejected_column", "rejected_reason")
"""The first columns of a download of rejected rows; they are ignored when the file is uploaded again."""
FIELD_TOO_LONG = f"a field is longer than {MAX_FIELD_CHARS:,} characters"
_WITHOUT_NAME = "this column has no name and was empty in the rows before; give it a name in the header"


class HeaderError(CsvError):
    """The header row is invalid."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a row that hold values: the first ``needed``, or only those in ``kept``.

    Columns beyond ``width`` and those in ``empty`` must be blank. The ``first`` columns of a download of rejected rows
    hold the reasons and are skipped.
    """

    first: int
    needed: int
    width: int
    kept: tuple[int, ...]
    empty: tuple[int, ...]

    @classmethod
    def of(cls, header: Sequence[str], kept: tuple[int, ...], width: int, *, is_mended: bool) -> "Columns":
        """Return the columns of a file with this header; ``is_mended`` marks a download of rejected rows."""
        first = len(REJECTED_COLUMNS) if is_mended else 0
        needed = kept[-1] + 1 if kept else len(header)
        width = max(width, needed)
        used = set(range(first)).union(kept or range(needed))
        return cls(first, needed, width, kept, tuple(place for place in range(width) if place not in used))

    def is_plain(self, rows: Sequence[list[str]]) -> bool:
        """Whether all rows can be stored unchanged: all have the header's width, none is blank. A fast check."""
        if self.kept or self.first or set(map(len, rows)) != {self.needed}:
            return False
        return all(map(str.strip, map(itemgetter(0), rows))) or not any(map(is_blank, rows))

    def values(self, row: list[str]) -> list[str] | tuple[int | None, str]:
        """Return the values of a row, or the column and the reason of its rejection."""
        if len(row) < self.needed or (len(row) > self.width and any(cell.strip() for cell in row[self.width :])):
            return None, f"expected {_counted(self.needed)}, found {len(row):,}"
        if len(row) == self.needed and not self.kept:
            return row
        for place in self.empty:
            if place < len(row) and row[place].strip():
                return place + 1, _WITHOUT_NAME
        values = [row[place] for place in self.kept] if self.kept else row[: self.needed]
        return [unescaped(value) for value in values] if self.first else values

    def restored(self, row: Sequence[str]) -> Sequence[str]:
        """Return a row without the columns and escapes of a download of rejected rows."""
        return [unescaped(cell) for cell in row[self.first :]] if self.first else row


def column_names(names: Sequence[str], kept: Sequence[int]) -> list[str]:
    """Return the names of the kept columns, with a generated name for each unnamed one. Raises HeaderError."""
    if len(kept) > MAX_COLUMNS:
        raise HeaderError(f"the header has {len(kept):,} columns; at most {MAX_COLUMNS:,} are allowed")
    seen: dict[str, int] = {}
    for place in kept:
        name = names[place]
        if len(name) > MAX_FIELD_CHARS:
            raise HeaderError(f"column {place + 1} of the header: {FIELD_TOO_LONG}")
        if name and name in seen:
            raise HeaderError(f"column {place + 1} of the header has the same name as column {seen[name] + 1}")
        seen[name] = place
    header = []
    for place in kept:
        name = names[place] or f"column_{place + 1}"
        while not names[place] and name in seen:
            name += "_"
        header.append(name)
    return header


def column_warnings(
    valued: Sequence[int], empty: Sequence[int], header: Sequence[str], kept: Sequence[int], *, is_mended: bool
) -> list[str]:
    """Return warnings about columns that were named or left out."""
    warnings = []
    if is_mended:
        warnings.append(f"the first {len(REJECTED_COLUMNS)} columns, of a download of rejected rows, were left out")
    warnings += [f"column {place + 1} has no name; it is called {header[kept.index(place)]}" for place in valued]
    if empty:
        warnings.append(f"empty columns were left out: {_ranges(empty)}")
    return warnings


def _ranges(places: Sequence[int]) -> str:
    """``3 to 5, 9`` for the places 2, 3, 4 and 8."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return ", ".join(f"{run[0] + 1} to {run[-1] + 1}" if len(run) > 1 else f"{run[0] + 1}" for run in runs)


def _counted(count: int) -> str:
    return f"{count:,} column" + "s" * (count != 1)
