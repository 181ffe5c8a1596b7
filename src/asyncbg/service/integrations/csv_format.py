"""Detection of a CSV file's format, refusal of other formats, and decoding of its lines."""

import codecs
import io
import json
import re
from dataclasses import dataclass
from typing import BinaryIO

from asyncbg.service.integrations.csv_dialect import SAMPLE_CHARS, Dialect, find_dialect, separator_line
from asyncbg.service.integrations.csv_encoding import (
    CHUNK_BYTES,
    UTF_16,
    Encoding,
    NotCsvError,
    content_end,
    decode_leniently,
    find_encoding,
)

_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1a"))
_FEW_CONTROLS = 8
_SIGNATURES = {
    b"PK\x03\x04": "a ZIP archive, as .xlsx and .ods files are; save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"\x1f\x8b": "gzip-compressed data; unpack it",
    **dict.fromkeys((b"\x89PNG", b"GIF8", b"\xff\xd8\xff"), "an image"),
    b"%PDF": "a PDF document",
    **dict.fromkeys((b"\x7fELF", b"SQLite format"), "a program or a database"),
}
_MARKUP = re.compile(r'\s*(?:\{\s*["}]|\[\s*[\[{"\]\d]|<[?!A-Za-z])')
_INVALID = re.compile("[\udc80-\udcff]")
_OTHER_LINE_ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@dataclass(frozen=True, slots=True)
class DeclaredFormat:
    """The declared format of a file: the sender's charset, and the settings' encoding and delimiter."""

    charset: str | None = None
    encoding: str | None = None
    delimiter: str | None = None


UNDECLARED = DeclaredFormat()


@dataclass(frozen=True, slots=True)
class Format:
    """The detected format of a file: encoding, dialect, the offset of the header, and warnings."""

    encoding: Encoding
    dialect: Dialect
    start: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """Decoded lines; undecodable bytes become surrogates.

    ``sizes`` are the lengths in bytes, or None if encoding a line again yields its bytes.
    """

    text: str
    lines: list[str]
    sizes: list[int] | None
    is_valid: bool


def sniff(file: BinaryIO, declared: DeclaredFormat) -> Format:
    """Detect the format from the start of ``file`` and its first text that is not ASCII. Raises NotCsvError."""
    file.seek(0)
    head = file.read(CHUNK_BYTES)
    if not head:
        raise NotCsvError("the file is empty; send a CSV file with a header row")
    if not head.strip(b"\0"):
        raise NotCsvError("the file holds nothing but zero bytes; send it again")
    encoding = find_encoding(file, head, declared=declared.charset or declared.encoding)
    end, zeros, has_stop = content_end(file, encoding.codec)
    sample = head[encoding.start : max(end, encoding.start)]
    _refuse_binary(sample, encoding.codec)
    whole = end <= len(head)
    text = decode_leniently(sample, encoding.codec)
    named = separator_line(text)
    start = encoding.start
    if named:
        start += len(text[: named[1]].encode(encoding.codec))
        text = text[named[1] :]
    dialect = find_dialect(text, whole=whole, delimiter=named[0] if named else declared.delimiter)
    if not dialect or not dialect.is_table or _is_json_object(text):
        _refuse_other_formats(head, text)
    if not dialect:
        raise NotCsvError("the file holds nothing but blank lines; send a CSV file with a header row")
    start += _bytes_of_lines(file, start, encoding.codec, dialect.lines_above)
    return Format(encoding, dialect, start, (*encoding.warnings, *_of_end(zeros, has_stop), *dialect.warnings))


def lines_of(data: bytes, codec: str) -> Lines:
    """Decode bytes into lines that end with LF, CRLF or CR."""
    if codec not in {"utf-8", "cp1252", *UTF_16}:
        pieces = data.splitlines(keepends=True)
        lines = [piece.decode(codec, "surrogateescape") for piece in pieces]
        text = "".join(lines)
        return Lines(text, lines, list(map(len, pieces)), is_valid=not _INVALID.search(text))
    try:
        text = data.decode(codec)
        return Lines(text, _split(text), None, is_valid=True)
    except UnicodeDecodeError:
        text = _marked_invalid(data, codec)
        return Lines(text, _split(text), None, is_valid=False)


def _marked_invalid(data: bytes, codec: str) -> str:
    """Decode with a surrogate for each invalid byte, which encodes to the same byte again."""
    if codec not in UTF_16:
        return data.decode(codec, "surrogateescape")
    if len(data) % 2:
        return data[:-1].decode(codec, "surrogatepass") + "\udfff"  # truncated inside the last character
    return data.decode(codec, "surrogatepass")


def _split(text: str) -> list[str]:
    """Split after each LF, CRLF and CR; ``splitlines`` is four times as fast but splits at more line ends."""
    if any(end in text for end in _OTHER_LINE_ENDS):
        return list(io.StringIO(text, newline=""))
    return text.splitlines(keepends=True)


def _bytes_of_lines(file: BinaryIO, start: int, codec: str, count: int) -> int:
    """Return the size in bytes of the first ``count`` lines from ``start``."""
    if not count:
        return 0
    file.seek(start)
    found = lines_of(file.read(4 * SAMPLE_CHARS), codec)
    if found.sizes is not None:
        return sum(found.sizes[:count])
    return len("".join(found.lines[:count]).encode(codec, "surrogatepass" if codec in UTF_16 else "surrogateescape"))


def _of_end(zeros: int, has_stop: bool) -> list[str]:
    warnings = []
    if zeros:
        warnings.append(f"the file ends with {zeros:,} zero byte{'s' * (zeros != 1)}, which were left out")
    if has_stop:
        warnings.append("the file ends with ^Z (0x1A), an end-of-file mark, which was left out")
    return warnings


def _refuse_binary(sample: bytes, codec: str) -> None:
    if codec in UTF_16:
        return
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if controls > _FEW_CONTROLS and controls * 10 > len(sample):
        for signature, what in _SIGNATURES.items():
            if sample.startswith(signature):
                raise NotCsvError(f"the file is binary data, not CSV: {what}")
        if _is_utf_32(sample):
            raise NotCsvError("the file is UTF-32 text; save it as UTF-8")
        raise NotCsvError("the file is binary data, not CSV")


def _is_utf_32(sample: bytes) -> bool:
    whole = sample[: len(sample) // 4 * 4]
    for codec in ("utf-32-le", "utf-32-be"):
        try:
            return bool(codecs.decode(whole, codec))
        except UnicodeDecodeError:
            continue
    return False


def _refuse_other_formats(head: bytes, text: str) -> None:
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            raise NotCsvError(f"the file is binary data, not CSV: {what}")
    if _MARKUP.match(text):
        raise NotCsvError("the file looks like JSON, HTML or XML, not CSV")


def _is_json_object(text: str) -> bool:
    """Whether the first line is a JSON object, which could look like columns."""
    line = text.lstrip().partition("\n")[0]
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
