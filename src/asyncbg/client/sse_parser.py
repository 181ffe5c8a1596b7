"""Server-Sent Events, from bytes to frames (WHATWG HTML, section 9.2.6): no I/O, any chunking, linear time."""

from dataclasses import dataclass
from typing import Final

from asyncbg.client.error import StreamError

MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
LONGEST_RETRY_MS: Final = 3_600_000
_BOM = b"\xef\xbb\xbf"
_MOST_DIGITS = 9


class LineReader:
    """The lines of a stream, from chunks of any size; they end with CR, LF or CRLF, and a leading BOM is dropped.

    Lines are split as bytes, since no byte of a multi-byte character is a line break; so a character split over chunks
    is whole when it is decoded.
    """

    def __init__(self) -> None:
        self.partial_size = 0
        """Bytes of the line that is not complete yet."""
        self._partial: list[bytes] = []
        self._is_first_line = True
        self._is_after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that ``chunk`` completes. A CR ends its line immediately; an LF that follows is dropped."""
        if self._is_after_cr and chunk:
            self._is_after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return []
        self._is_after_cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()  # of bytes: at CR, LF and CRLF only
        rest = b"" if chunk.endswith((b"\r", b"\n")) else lines.pop()
        if lines:
            if self._partial:
                lines[0] = b"".join((*self._partial, lines[0]))
                self._partial, self.partial_size = [], 0
            if self._is_first_line:
                lines[0] = lines[0].removeprefix(_BOM)
                self._is_first_line = False
        if rest:
            self._partial.append(rest)
            self.partial_size += len(rest)
        return lines


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One dispatched event: its type, its data, and the last event id at that time."""

    event: str
    data: str
    id: str


class SSEParser:
    """A parser from the bytes of one stream to its events: ``for event in parser.feed(chunk)``.

    ``last_event_id`` is the cursor to reconnect with, ``retry_ms`` the reconnection time that the server last sent. A
    block that the end of the stream cuts off is discarded, as the standard demands.
    """

    def __init__(self, *, last_event_id: str = "", max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        """Begin a stream that was opened with ``last_event_id``; buffer at most ``max_frame_bytes`` of a frame."""
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._max_frame_bytes = max_frame_bytes
        self._reader = LineReader()
        self._event = b""
        self._id = last_event_id
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Return the events that ``chunk`` completes. Raises StreamError where a frame is too large."""
        frames: list[ServerEvent] = []
        for line in self._reader.feed(chunk):
            if line:
                self._parse(line)
            else:
                self._dispatch(frames)
        if self._reader.partial_size + self._data_size > self._max_frame_bytes:
            self._refuse()
        return frames

    def _parse(self, line: bytes) -> None:
        """Parse one field. A comment is a field without a name, and ignored like any unknown field."""
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_size += len(value) + 1
            if self._data_size > self._max_frame_bytes:
                self._refuse()
        elif name == b"event":
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry_ms = min(int(value), LONGEST_RETRY_MS) if len(value) <= _MOST_DIGITS else LONGEST_RETRY_MS

    def _dispatch(self, frames: list[ServerEvent]) -> None:
        """Dispatch at a blank line: the id is kept also where there is no data, and so no event."""
        self.last_event_id = self._id
        if self._data:
            event = self._event.decode("utf-8", "replace") or "message"
            frames.append(ServerEvent(event, b"\n".join(self._data).decode("utf-8", "replace"), self._id))
            self._data, self._data_size = [], 0
        self._event = b""

    def _refuse(self) -> None:
        raise StreamError(
            f"a frame of the stream is larger than {self._max_frame_bytes} bytes; if that is intended, give the "
            "client a larger max_frame_bytes"
        )
