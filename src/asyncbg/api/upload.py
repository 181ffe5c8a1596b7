"""Read the one file of a multipart request (RFC 7578) as it arrives: a chunk in memory at a time, the size watched."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from asyncbg.api.inputs import refuse_input

OVERHEAD_BYTES = 65_536
"""What boundaries, part headers and other small fields may take beside the file."""


class FilePart:
    """The part named ``file`` of a multipart request. Await :meth:`open`, then go through :meth:`chunks`.

    Both raise HTTPException: 400 for a malformed or incomplete body, 413 for one that is too large; and
    RequestValidationError where the file is missing or comes twice.
    """

    def __init__(self, request: Request, *, max_bytes: int) -> None:
        """Look at the headers: 413 for an announced length over the limit, 415 for another media type."""
        length = request.headers.get("content-length", "")
        self.announced_bytes = int(length) if length.isdecimal() and len(length) < 20 else 0
        self._left = max_bytes + OVERHEAD_BYTES
        if self.announced_bytes > self._left:
            raise too_large(max_bytes)
        self._max_bytes = max_bytes
        self._stream = request.stream()
        self._parser = MultipartParser(_boundary(request), _Part(self).callbacks())
        self._data: list[bytes] = []
        self.file_name: str | None = None
        self.is_whole = False

    async def open(self) -> str:
        """Read up to the file and return the name that its sender gave it."""
        while self.file_name is None:
            if not await self._feed():
                raise refuse_input(("body", "file"), "a file part of this name is required", "missing")
        return self.file_name

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes; ends with the end of the request."""
        more = True
        while more:
            while self._data:
                yield self._data.pop(0)
            more = await self._feed()

    async def _feed(self) -> bool:
        """Parse the next chunk of the body; False at its end."""
        try:
            chunk = await anext(self._stream, b"")
            self._parser.write(chunk)
        except ClientDisconnect:
            raise HTTPException(400, "the client left before the upload was complete") from None
        except FormParserError:
            raise HTTPException(400, "the body is not well-formed multipart/form-data") from None
        self._left -= len(chunk)
        if self._left < 0:
            raise too_large(self._max_bytes)
        if not chunk and not self.is_whole:
            raise HTTPException(400, "the body ends before its closing boundary")
        return bool(chunk)

    def begin(self, file_name: str) -> None:
        """The file's headers are read."""
        if self.file_name is not None:
            raise refuse_input(("body", "file"), "send one file a request", "too_many")
        self.file_name = file_name

    def add(self, data: bytes) -> None:
        """Some of the file's bytes are read."""
        self._data.append(data)


class _Part:
    """What the parser calls back for each part; hands the file's bytes on and lets the other fields go."""

    def __init__(self, file: FilePart) -> None:
        self._file = file
        self._name = self._value = self._disposition = b""
        self._is_file = False

    def callbacks(self) -> Any:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._is_file = b"", False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        file_name = options.get(b"filename")
        if options.get(b"name") == b"file" and file_name:
            self._is_file = True
            self._file.begin(file_name.decode("utf-8", "replace"))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.add(data[start:end])

    def _end(self) -> None:
        self._file.is_whole = True


def too_large(max_bytes: int) -> HTTPException:
    """The answer to an upload over the limit."""
    return HTTPException(413, f"the file is larger than {max_bytes:,} bytes; send it in parts")


def _boundary(request: Request) -> bytes:
    """The boundary between the parts."""
    media, options = parse_options_header(request.headers.get("content-type", ""))
    if media != b"multipart/form-data":
        raise HTTPException(415, "send the file as multipart/form-data")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise HTTPException(400, "the Content-Type names no boundary of 1 to 70 characters (RFC 2046, 5.1.1)")
    return boundary
