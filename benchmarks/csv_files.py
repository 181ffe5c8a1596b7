"""Read every CSV file of a folder as an import does, and compare each stored value with what Python's csv module reads.

``python -m benchmarks.csv_files FOLDER`` prints a line for each file that is refused or has rejected rows, with the
reason, and the sums. It exits with 1 if a file breaks the reader, or if a stored value is not the one in the file.
The folder may hold the test data of CSV parsers: docs/csv.md names those that were read.
"""

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from asyncbg.service.integrations.csv_encoding import CsvError, content_end
from asyncbg.service.integrations.csv_reader import Cursor, open_csv, read_batches

_SUFFIXES = {".csv", ".tsv", ".tab", ".psv"}


def main() -> int:
    """Read the files; 1 if one of them broke the reader or was changed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    sums: Counter[str] = Counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in _SUFFIXES):
        told = _read(path, sums)
        if told:
            print(f"{path.relative_to(folder)}: {told}")
    print(", ".join(f"{count:,} {what}" for what, count in sums.items()))
    return int(bool(sums["crashes"] or sums["changed values"]))


def _read(path: Path, sums: Counter[str]) -> str:
    """Read one file and count what came of it; gives what there is to tell."""
    sums["files"] += 1
    try:
        with path.open("rb") as file:
            cursor = open_csv(file).cursor
            return _rows(file, cursor, sums)
    except CsvError as error:
        sums["refused"] += 1
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        sums["crashes"] += 1
        return f"CRASH: {type(error).__name__}: {error}"


def _rows(file: io.BufferedReader, cursor: Cursor, sums: Counter[str]) -> str:
    stored: list[list[str] | None] = []
    reasons: Counter[str] = Counter()
    for batch in read_batches(file, cursor):
        stored += batch.rows
        reasons.update(rejection.reason for rejection in batch.rejections)
        sums["rows stored"] += batch.accepted
        sums["rows rejected"] += len(batch.rejections)
        sums["blank rows"] += batch.blank
    if any("quote" in reason for reason in reasons):
        sums["files with broken quotes, not compared behind them"] += 1
    changed = sum(_is_changed(*pair) for pair in zip_longest(_until_broken(stored, reasons), _values(file, cursor)))
    sums["changed values"] += changed
    told = [f"{count:,} rows: {reason}" for reason, count in reasons.most_common(3)]
    return "; ".join(([f"CHANGED: {changed:,} rows"] if changed else []) + told)


def _until_broken(stored: list[list[str] | None], reasons: Counter[str]) -> list[list[str] | None]:
    """The rows; of a file with broken quotes those before the first missing one: behind it the two count otherwise."""
    if any("quote" in reason for reason in reasons):
        return stored[: stored.index(None)]
    return stored


def _is_changed(stored: list[str] | None, read: list[str] | None) -> bool:
    return stored is not None and stored != read


def _values(file: io.BufferedReader, cursor: Cursor) -> Iterator[list[str]]:
    """The rows behind the header as the csv module reads them, in the columns that are kept."""
    end, _, _ = content_end(file, cursor.encoding)
    file.seek(cursor.offset)
    text = file.read(max(0, end - cursor.offset)).decode(cursor.encoding, "replace").replace("\n\ufeff", "\n")
    kept = cursor.kept or range(len(cursor.header))
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=cursor.delimiter):
        yield [row[place] for place in kept if place < len(row)]


if __name__ == "__main__":
    csv.field_size_limit(sys.maxsize)
    sys.exit(main())
