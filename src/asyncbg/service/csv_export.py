"""Answer with a table that a spreadsheet opens without running anything in it."""

import csv
import io
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

from fastapi import Response
from fastapi.responses import StreamingResponse

from asyncbg.service.integrations.csv_row import CELL_START, FORMULA_CHARS

MEDIA_TYPE = "text/csv; charset=utf-8"
MARK = "\ufeff"
"""Begins the file: without it a spreadsheet takes UTF-8 for something else."""

Cell = str | int | None

_FORMULA = re.compile(f"{CELL_START}(?={FORMULA_CHARS})")


def csv_response(name: str, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Response:
    """A file called ``name``: one line for the header and one for each row, every cell quoted, formulas made text."""
    content = _encoded(MARK + _lines([header]) + _lines(rows))
    return Response(content, media_type=MEDIA_TYPE, headers=_headers(name))


def csv_stream(name: str, header: Sequence[str], pages: AsyncIterable[Iterable[Sequence[Cell]]]) -> Response:
    """The same of rows that come page by page, each sent as soon as it is there."""

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
    """Text that no spreadsheet takes for a formula; a number as it is, nothing for None."""
    return _FORMULA.sub(r"\1\2'", value) if isinstance(value, str) else "" if value is None else value
