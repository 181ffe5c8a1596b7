"""Find out how a CSV file is written, encoding and delimiter, and refuse what is no CSV."""

import codecs
import csv
import io
import re
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from asyncbg.errors import FinalError

CHUNK_BYTES = 524_288

_DELIMITERS = ",;\t|"
_SAMPLE_ROWS = 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f"))
_FEW_CONTROLS = 8
_SIGNATURES = (b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"%PDF", b"PK\x03\x04", b"\x1f\x8b", b"\x7fELF", b"SQLite format")
_MARKUP = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*["}]|\[\s*[\[{"\]\d]|<[?!A-Za-z])')
_ESCAPED = re.compile("[\udc80-\udcff]")


class CsvError(FinalError):
    """The file as a whole cannot be read as CSV; sending it again unchanged is pointless."""


class NotCsvError(CsvError):
    """The file is not CSV at all, or of an encoding that is not read."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a file is written: its encoding, the length of its byte order mark in bytes, what separates its columns."""

    encoding: str
    start: int
    delimiter: str


def sniff(file: BinaryIO) -> Format:
    """Look at the start of ``file``, and on to its first text that is not ASCII. Raises NotCsvError."""
    file.seek(0)
    head = file.read(CHUNK_BYTES)
    _refuse_other_formats(head)
    encoding, start = _encoding(file, head)
    text = _decode_part(head[start:], encoding)
    return Format(encoding, start, _delimiter(text, whole=len(head) < CHUNK_BYTES))


def _refuse_other_formats(head: bytes) -> None:
    if not head:
        raise NotCsvError("the file is empty; send a CSV file with a header row")
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise NotCsvError("the file is UTF-32 text; save it as UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return
    if _MARKUP.match(head):
        raise NotCsvError("the file looks like JSON, HTML or XML, not CSV")
    if head.startswith(_SIGNATURES):
        raise NotCsvError("the file is binary data, not CSV")
    zeros = max(head[0::2].count(0), head[1::2].count(0))
    if zeros > 1 and zeros * 3 > len(head):
        raise NotCsvError("the file looks like UTF-16 text without a byte order mark; save it as UTF-8")
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls > _FEW_CONTROLS and controls * 10 > len(head):
        raise NotCsvError("the file is binary data, not CSV")


def _encoding(file: BinaryIO, head: bytes) -> tuple[str, int]:
    """The encoding and the length of the byte order mark; without one, the first text that is not ASCII decides.

    A few broken characters among good ones are a UTF-8 file with broken rows; the other way round it is no UTF-8.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    part = head
    while part.isascii():
        part = file.read(CHUNK_BYTES)
        if not part:
            return "utf-8", 0
    text = _decode_part(part, "utf-8")
    invalid = len(_ESCAPED.findall(text))
    valid = sum(not char.isascii() for char in text) - invalid
    return ("utf-8" if valid >= invalid else "cp1252"), 0


def _decode_part(data: bytes, encoding: str) -> str:
    """Decode the start of a file, which may end inside a character."""
    if encoding.startswith("utf-16"):
        return data[: len(data) // 2 * 2].decode(encoding, "replace")
    return codecs.getincrementaldecoder(encoding)("surrogateescape").decode(data)


def _delimiter(text: str, *, whole: bool) -> str:
    """The delimiter that cuts the header into columns and the rows after it into as many."""

    def score(delimiter: str) -> tuple[float, int]:
        widths = _widths(text, delimiter, whole=whole)
        if not widths or widths[0] == 1:
            return 0.0, 1
        return widths.count(widths[0]) / len(widths), widths[0]

    return max(_DELIMITERS, key=score)


def _widths(text: str, delimiter: str, *, whole: bool) -> list[int]:
    """How many columns each of the first rows has."""
    widths: list[int] = []
    try:
        for row in islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), _SAMPLE_ROWS):
            if row:
                widths.append(len(row))  # noqa: PERF401  (what came before an error counts)
    except csv.Error:  # a field over the parser's limit: judge by the rows before it
        return widths
    if not whole and 1 < len(widths) < _SAMPLE_ROWS:
        widths.pop()  # cut off in the middle
    return widths
