"""ContentDecoder of HTTP content codings (RFC 9110, 8.4) in bounded pieces, which detects truncated bodies."""

import zlib
from collections.abc import Iterator, Sequence

ASKED = ("gzip", "deflate")
_UNDECODED = frozenset(
    {"br", "zstd", "compress", "x-compress", "dcb", "dcz", "aes128gcm", "exi", "pack200-gzip", "bzip2", "xz", "lzma"}
)
_PIECE_BYTES = 65_536
_MAX_CODINGS = 4
_GZIP_MAGIC = b"\x1f\x8b"


class CodingError(ValueError):
    """The body cannot be decoded. ``is_final`` if a retry would fail too, as for an unrequested coding."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class TruncatedBodyError(CodingError):
    """The body is truncated."""

    def __init__(self) -> None:
        super().__init__("sent a truncated compressed body")


class ContentDecoder:
    """ContentDecoder of the codings in ``Content-Encoding``, applied last to first.

    Names that are not codings (``utf-8``, ``none``, ``application/json``) are ignored, as in browsers. Raises
    CodingError for an unsupported coding.
    """

    def __init__(self, content_encoding: Sequence[str], *, max_bytes: int) -> None:
        """Parse the header's values; ``max_bytes`` limits the output of each coding."""
        names = [name.strip().lower() for value in content_encoding for name in value.split(",")]
        if found := next((name for name in names if name in _UNDECODED), None):
            raise CodingError(f"sent its answer in the coding {found}, which was not asked for", is_final=True)
        codings = [name.removeprefix("x-") for name in names if name.removeprefix("x-") in ASKED]
        if len(codings) > _MAX_CODINGS:
            raise CodingError(f"sent its answer in more than {_MAX_CODINGS} codings", is_final=True)
        self._stages = [_Inflater(name, max_bytes) for name in reversed(codings)]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Return the next pieces of the decoded body. Raises CodingError."""
        pieces: Iterator[bytes] = iter((data,))
        for stage in self._stages:
            pieces = stage.inflated(pieces)
        return pieces

    def finish(self) -> None:
        """Raise TruncatedBodyError if the body is incomplete."""
        if not all(stage.is_whole for stage in self._stages):
            raise TruncatedBodyError


class _Inflater:
    """ContentDecoder of one coding: gzip with any number of members and padding, or deflate.

    "deflate" is the zlib format (RFC 9110, 8.4.1.2), or raw deflate, which some servers send.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._left = max_bytes + _PIECE_BYTES
        self._member: zlib._Decompress | None = None
        self._held = b""
        self._members = 0
        self._is_over = False

    @property
    def is_whole(self) -> bool:
        """Whether no member is incomplete; True for an empty body."""
        return self._member is None

    def inflated(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the decoded output of the pieces."""
        for piece in pieces:
            data, self._held = self._held + piece, b""
            while data and not self._is_over:
                member = self._member or self._begin(data)
                if member is None:
                    break
                yield from self._step(member, data)
                data = member.unused_data if member.eof else member.unconsumed_tail

    def _begin(self, data: bytes) -> "zlib._Decompress | None":
        """Start the first or next member; None if there is none, or its signature is incomplete."""
        if self._members == 0:
            raw_or_zlib = 15 if data[0] & 0x0F == 8 else -15
            self._member = zlib.decompressobj(31 if self._name == "gzip" else raw_or_zlib)
        elif self._name == "gzip" and data.startswith(_GZIP_MAGIC):
            self._member = zlib.decompressobj(31)
        elif data == _GZIP_MAGIC[:1]:
            self._held = data
        else:
            self._is_over = True  # padding, which gunzip and browsers ignore too
        return self._member

    def _step(self, member: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
        """Yield one bounded piece of the output of ``data``."""
        try:
            piece = member.decompress(data, _PIECE_BYTES)
        except zlib.error:
            raise CodingError(f"sent a body that is not {self._name}, as its Content-Encoding says") from None
        self._left -= len(piece)
        if self._left < 0:
            raise CodingError("sent a body that decodes to more than ASYNCBG_OUTBOUND__MAX_BYTES", is_final=True)
        if member.eof:
            self._member, self._members = None, self._members + 1
        if piece:
            yield piece
