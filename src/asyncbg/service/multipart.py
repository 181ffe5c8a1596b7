"""Incremental parser of multipart bodies (RFC 2046, 5.1)."""

import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.header import decode_header, make_header
from enum import Enum, auto
from typing import Protocol
from urllib.parse import unquote_to_bytes

MAX_HEADER_LINE_BYTES = 4_224
MAX_HEADERS = 8
_MAX_PREAMBLE_BYTES = 65_536
_MAX_PADDING_BYTES = 1_024
_PARAMETER = re.compile(r';\s*([^\s=;]+)\s*=\s*("(?:[^"\\]|\\["\\]|\\(?!["\\]))*"|[^;]*)')
_EXTENDED = re.compile(r"([\w.:+-]*)'[\w-]*'(.*)", re.DOTALL)


class MultipartError(ValueError):
    """The multipart body is not well-formed."""


class EncodingUnsupportedError(ValueError):
    """The part has an unsupported Content-Transfer-Encoding."""


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers of a part, by lower-case name."""

    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class End:
    """The closing boundary; the epilogue behind it is ignored."""


Piece = Headers | bytes | End


class _State(Enum):
    PREAMBLE = auto()
    BOUNDARY = auto()
    HEADERS = auto()
    CONTENT = auto()
    EPILOGUE = auto()


class MultipartParser:
    """Parser that splits a body into parts; feed it with :meth:`write`.

    A boundary is a whole line: a line that only begins like one is content. Padding, preamble and epilogue are
    skipped. The parser buffers at most the length of a boundary.
    """

    def __init__(self, boundary: bytes) -> None:
        """Split at lines of two hyphens and ``boundary``."""
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # the first boundary may open the body
        self._state = _State.PREAMBLE
        self._skipped = 0

    def write(self, data: bytes, *, is_last: bool = False) -> Iterator[Piece]:
        """Parse more of the body. Raises MultipartError, with ``is_last`` also for a missing closing boundary."""
        self._buffer += data
        while (piece := self._next(is_last=is_last)) is not None:
            if piece:
                yield piece
        if is_last and self._state is not _State.EPILOGUE:
            raise MultipartError("the body ends before its closing boundary")

    def _next(self, *, is_last: bool) -> Piece | None:
        """Return the next piece, empty bytes for a step without one, or None if more of the body is needed."""
        match self._state:
            case _State.PREAMBLE | _State.CONTENT:
                return self._content()
            case _State.BOUNDARY:
                return self._boundary(is_last=is_last)
            case _State.HEADERS:
                return self._headers()
            case _State.EPILOGUE:
                self._buffer = b""
                return None

    def _content(self) -> bytes | None:
        at = self._buffer.find(self._delimiter)
        if at >= 0:
            found, self._buffer = self._buffer[:at], self._buffer[at:]
            self._before, self._state = self._state, _State.BOUNDARY
            return self._shown(found, self._before)
        keep = _held_back(self._buffer, self._delimiter)
        if keep == len(self._buffer):
            return None
        found, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        return self._shown(found, self._state)

    def _shown(self, found: bytes, state: _State) -> bytes:
        if state is _State.CONTENT:
            return found
        self._skipped += len(found)
        if self._skipped > _MAX_PREAMBLE_BYTES:
            raise MultipartError("no part begins in the body: its boundary is not the one of the Content-Type")
        return b""

    def _boundary(self, *, is_last: bool) -> Piece | None:
        """Parse what follows a delimiter: the end of its line, the hyphens of the closing one, or more content."""
        rest = self._buffer[len(self._delimiter) :]
        is_closing = rest.startswith(b"--")
        end = rest[2 * is_closing :].lstrip(b" \t")
        padding = len(rest) - len(end)
        is_cut_off = rest == b"-" or (end in {b"", b"\r"} and padding <= _MAX_PADDING_BYTES)
        if is_closing and (end.startswith((b"\r\n", b"\n")) or (is_last and is_cut_off)):
            self._buffer, self._state = b"", _State.EPILOGUE
            return End()
        if end.startswith(b"\r\n") and not is_closing:
            self._buffer, self._state = end[2:], _State.HEADERS
            return b""
        if is_cut_off:
            return None
        found, self._buffer = self._buffer[: len(self._delimiter)], rest
        self._state = self._before
        return self._shown(found, self._before)

    def _headers(self) -> Headers | None:
        if self._buffer.startswith(b"\r\n"):
            self._buffer, self._state = self._buffer[2:], _State.CONTENT
            return Headers({})
        end = self._buffer.find(b"\r\n\r\n")
        lines = self._buffer[: end if end >= 0 else None].split(b"\r\n")
        if len(lines) > MAX_HEADERS + (end < 0) or max(map(len, lines)) > MAX_HEADER_LINE_BYTES:
            raise MultipartError(
                f"a part has more than {MAX_HEADERS} header lines, or one over {MAX_HEADER_LINE_BYTES:,} bytes"
            )
        if end < 0:
            return None
        self._buffer, self._state = self._buffer[end + 4 :], _State.CONTENT
        return Headers(dict(_field(line) for line in lines))


def _held_back(buffer: bytes, delimiter: bytes) -> int:
    """Return how many of the last bytes may begin a delimiter."""
    at = buffer.rfind(b"\r", max(0, len(buffer) - len(delimiter) + 1))
    while at >= 0 and not delimiter.startswith(buffer[at:]):
        at = buffer.rfind(b"\r", max(0, len(buffer) - len(delimiter) + 1), at)
    return len(buffer) - at if at >= 0 else 0


def _field(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not name.strip() or name != name.strip():
        raise MultipartError("a header line of a part has no name and colon")
    return text_of(name).lower(), text_of(value).strip()


def text_of(raw: bytes) -> str:
    """Decode a header: UTF-8, which browsers send (RFC 7578, 4.2), else Windows-1252."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header by lower-case name; extended parameters (RFC 5987) take precedence."""
    found: dict[str, str] = {}
    for name, value in _PARAMETER.findall(header):
        found.setdefault(name.lower(), _unquoted(value.strip()))
    return found | _extended(found)


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return value[1:-1].replace("\\\\", "\\").replace('\\"', '"')


def _extended(found: Mapping[str, str]) -> dict[str, str]:
    """``name*=utf-8''a%20b`` and ``name*0=…; name*1*=…`` (RFC 2231) decoded; undecodable values are left out."""
    pieces: dict[str, list[tuple[int, bool, str]]] = {}
    for key, value in found.items():
        name, star, place = key.partition("*")
        number = place.removesuffix("*")
        if star and (not number or (number.isascii() and number.isdecimal() and len(number) < 4)):
            pieces.setdefault(name, []).append((int(number or 0), place == "" or place.endswith("*"), value))
    decoded = {name: _joined(sorted(several)) for name, several in pieces.items()}
    return {name: value for name, value in decoded.items() if value is not None}


def _joined(pieces: list[tuple[int, bool, str]]) -> str | None:
    charset, raw = "utf-8", b""
    for number, is_encoded, value in pieces:
        text = value
        if is_encoded and number == 0 and (match := _EXTENDED.fullmatch(value)):
            charset, text = match[1] or charset, match[2]
        raw += unquote_to_bytes(text) if is_encoded else text.encode()
    try:
        return raw.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return None


def file_name_of(disposition: Mapping[str, str]) -> str | None:
    """Return the file name: ``filename*=``, else ``filename=`` with the escapes of browsers and mailers decoded."""
    name = disposition.get("filename")
    if name is None:
        return None
    if name.startswith("=?") and name.endswith("?="):
        try:
            return str(make_header(decode_header(name)))
        except (ValueError, LookupError, UnicodeDecodeError):
            return name
    return name.replace("%22", '"').replace("%0D", "").replace("%0A", "")  # HTML, 4.10.21.8


class TransferDecoder(Protocol):
    """Incremental decoder of a Content-Transfer-Encoding."""

    def decode(self, data: bytes, *, is_last: bool = False) -> bytes:
        """Return the bytes decoded so far. Raises MultipartError."""
        ...


def decoder_of(encoding: str) -> TransferDecoder | None:
    """Return the decoder of a Content-Transfer-Encoding, None for identity. Raises EncodingUnsupportedError."""
    match encoding.strip().lower():
        case "" | "7bit" | "8bit" | "binary":
            return None
        case "base64":
            return _Base64()
        case "quoted-printable":
            return _QuotedPrintable()
        case _:
            raise EncodingUnsupportedError


class _Base64:
    def __init__(self) -> None:
        self._rest = b""

    def decode(self, data: bytes, *, is_last: bool = False) -> bytes:
        self._rest += data.translate(None, b" \t\r\n")
        whole = len(self._rest) if is_last else len(self._rest) // 4 * 4
        piece, self._rest = self._rest[:whole], self._rest[whole:]
        try:
            return binascii.a2b_base64(piece, strict_mode=True) if piece else b""
        except binascii.Error:
            raise MultipartError("its Content-Transfer-Encoding is base64, its content is not") from None


class _QuotedPrintable:
    def __init__(self) -> None:
        self._rest = b""

    def decode(self, data: bytes, *, is_last: bool = False) -> bytes:
        self._rest += data
        whole = len(self._rest) if is_last else self._rest.rfind(b"\n") + 1
        piece, self._rest = self._rest[:whole], self._rest[whole:]
        return binascii.a2b_qp(piece)
