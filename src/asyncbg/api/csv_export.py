"""Answer with a table that a spreadsheet opens without running anything in it."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from fastapi import Response

MEDIA_TYPE = "text/csv; charset=utf-8"

# What begins a formula, at the start of a cell or behind what another program may take for the end of one (OWASP, "CSV
# Injection"): quotes do not help against a program that separates by semicolons. The wide forms begin one in some.
_FORMULA = re.compile(r"(\A|[,;|\t\r\n])([ \u00a0]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n])")


def csv_response(name: str, header: Sequence[str], rows: Iterable[Sequence[str | int | None]]) -> Response:
    """A file called ``name``: one line for the header and one for each row, every cell quoted, formulas made text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(text.getvalue().encode("utf-8", "replace"), media_type=MEDIA_TYPE, headers=headers)


def _cell(value: str | int | None) -> str | int:
    """Text that no spreadsheet takes for a formula; a number as it is, nothing for None."""
    return _FORMULA.sub(r"\1\2'", value) if isinstance(value, str) else "" if value is None else value
