"""CSV responses in which a spreadsheet evaluates no formula."""

import csv
import io
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

from fastapi import Response
from fastapi.responses import StreamingResponse

from asyncbg.service.integrations.csv_row import CELL_START, FORMULA_CHARS

MEDIA_TYPE = "text/csv; charset=utf-8"
MARK = "\ufeff"
"""The byte order mark: without it, spreadsheets do not detect UTF-8."""

Cell = str | int | None

_FORMULA = re.compile(f"{CELL_START}(?={FORMULA_CHARS})")


def csv_response(name: str, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Response:
    """Return a CSV file called ``name`` with every cell quoted and formulas escaped."""
    content = _encoded(MARK + _lines([header]) + _lines(rows))
    return Response(content, media_type=MEDIA_TYPE, headers=_headers(name))


def csv_stream(name: str, header: Sequence[str], pages: AsyncIterable[Iterable[Sequence[Cell]]]) -> Response:
    """Return the same file as a stream, one page of rows at a time."""

    async def content() -> AsyncIterator[bytes]:
        yield _encoded(MARK + _lines([header]))
        async for rows in pages:
            yield _encoded(_lines(rows))

    return StreamingResponse(content(), media_type=MEDIA_TYPE, headers=_headers(name))


def _headers(name: str) -> dict[str, str]:
    return {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }


def _lines(rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _cell(value: Cell) -> str | int:
    """Return the cell with formulas escaped; numbers stay as they are, None becomes an empty cell."""
    return _FORMULA.sub(r"\1\2'", value) if isinstance(value, str) else "" if value is None else value
