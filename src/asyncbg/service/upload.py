"""The file of a multipart request (RFC 7578), read in chunks with its size limited."""

import re
from collections.abc import AsyncIterator

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect

from asyncbg.service.multipart import (
    EncodingUnsupportedError,
    End,
    Headers,
    MultipartError,
    MultipartParser,
    TransferDecoder,
    decoder_of,
    file_name_of,
    parameters,
)
from asyncbg.web.inputs import refuse_input

OVERHEAD_BYTES = 65_536
"""Bytes allowed for boundaries, part headers and other small fields beside the file."""
_MAX_CHARSET_BYTES = 64
_CHARSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}")


class FilePart:
    """The part named ``file`` of a multipart request. Await :meth:`open`, then iterate over :meth:`chunks`.

    Both raise HTTPException: 400 for a malformed or incomplete body, 413 for one that is too large, 415 for an
    unsupported Content-Transfer-Encoding; and RequestValidationError if the file is missing or sent twice.
    """

    def __init__(self, request: Request, *, max_bytes: int) -> None:
        """Check the headers: 413 for a Content-Length over the limit, 415 for another media type."""
        length = request.headers.get("content-length", "")
        self.announced_bytes = int(length) if length.isdecimal() and len(length) < 20 else 0
        self._left = max_bytes + OVERHEAD_BYTES
        if self.announced_bytes > self._left:
            raise too_large(max_bytes)
        self._max_bytes = max_bytes
        self._stream = request.stream()
        self._parser = MultipartParser(_boundary(request))
        self._data: list[bytes] = []
        self._is_file = self._is_charset = self._has_unnamed = False
        self._decoder: TransferDecoder | None = None
        self._form_charset = b""
        self._own_charset: str | None = None
        self.file_name: str | None = None

    @property
    def charset(self) -> str | None:
        """The declared charset of the file, complete once all chunks are read; None without one.

        It comes from the part's Content-Type or from a form field ``_charset_`` (RFC 7578, 4.6). A value that cannot be
        the name of a charset becomes ``unknown``.
        """
        named = self._own_charset or self._form_charset.decode("ascii", "replace").strip()
        return (named if _CHARSET.fullmatch(named) else "unknown") if named else None

    async def open(self) -> str:
        """Read up to the file. Return its file name."""
        while self.file_name is None:
            if not await self._feed():
                raise self._missing()
        return self.file_name

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes until the end of the request."""
        more = True
        while more:
            while self._data:
                yield self._data.pop(0)
            more = await self._feed()
        while self._data:
            yield self._data.pop(0)

    async def _feed(self) -> bool:
        """Parse the next chunk of the body. Return False at its end."""
        try:
            chunk = await anext(self._stream, b"")
            self._left -= len(chunk)
            if self._left < 0:
                raise too_large(self._max_bytes)
            for piece in self._parser.write(chunk, is_last=not chunk):
                self._handle_part(piece)
        except ClientDisconnect:
            raise HTTPException(400, "the client disconnected before the upload was complete") from None
        except MultipartError as error:
            raise HTTPException(400, f"the body is not well-formed multipart/form-data: {error}") from None
        return bool(chunk)

    def _handle_part(self, piece: Headers | bytes | End) -> None:
        if isinstance(piece, bytes):
            self._handle_content(piece)
            return
        if self._is_file:
            self._append(b"", is_last=True)
        self._is_file = self._is_charset = False
        if isinstance(piece, Headers):
            self._begin_part(piece)

    def _handle_content(self, data: bytes) -> None:
        if self._is_file:
            self._append(data)
        elif self._is_charset:
            self._form_charset = (self._form_charset + data)[:_MAX_CHARSET_BYTES]

    def _append(self, data: bytes, *, is_last: bool = False) -> None:
        if self._decoder:
            data = self._decoder.decode(data, is_last=is_last)
        if data:
            self._data.append(data)

    def _begin_part(self, headers: Headers) -> None:
        disposition = parameters(headers.fields.get("content-disposition", ""))
        self._is_charset = disposition.get("name") == "_charset_"
        if disposition.get("name") != "file":
            return
        file_name = file_name_of(disposition)
        self._has_unnamed |= not file_name
        if not file_name:
            return
        if self.file_name is not None:
            raise refuse_input(("body", "file"), "send one file a request", "too_many")
        self._decoder = _decoder(headers)
        self._own_charset = parameters(headers.fields.get("content-type", "")).get("charset")
        self.file_name, self._is_file = file_name, True

    def _missing(self) -> RequestValidationError:
        if self._has_unnamed:
            return refuse_input(("body", "file"), "the part has no file name; send it as a file", "missing")
        return refuse_input(("body", "file"), "a file part of this name is required", "missing")


def _decoder(headers: Headers) -> TransferDecoder | None:
    try:
        return decoder_of(headers.fields.get("content-transfer-encoding", ""))
    except EncodingUnsupportedError:
        raise HTTPException(
            415,
            "the Content-Transfer-Encoding of the file is unknown; send it as binary, base64 or quoted-printable",
        ) from None


def too_large(max_bytes: int) -> HTTPException:
    """Return the 413 response to an upload over the limit."""
    return HTTPException(413, f"the file is larger than {max_bytes:,} bytes; send it in parts")


def _boundary(request: Request) -> bytes:
    """Return the boundary between the parts."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(415, "send the file as multipart/form-data")
    boundary = parameters(content_type).get("boundary", "").encode("latin-1", "replace")
    if not 1 <= len(boundary) <= 70:
        raise HTTPException(400, "the Content-Type names no boundary of 1 to 70 characters (RFC 2046, 5.1.1)")
    return boundary
