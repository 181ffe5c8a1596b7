"""What one connection may ask of ``asyncbg serve``: bounds that uvicorn's own parser does not have.

httptools keeps every header it is sent and waits for the rest of a request for ever: an endless head fills the memory,
and thousands of half-sent ones (Slowloris) use up all descriptors. Requests whose length can be read in two ways
(request smuggling, RFC 9112, 11.2) are refused by llhttp below it; ``tests/api/test_connection_limits.py`` tries them.
"""

import asyncio
import http
import json
from typing import Any, ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from asyncbg.api.headers import RAW_HEADERS
from asyncbg.settings import StreamSettings

MOST_HEADERS: Final = 100
MOST_HEAD_BYTES: Final = 64 * 1024
MOST_URL_BYTES: Final = 16 * 1024
_OTHER_CONNECTIONS: Final = 1_000
_KEEP_ALIVE_S: Final = 5


def connection_limits(stream: StreamSettings) -> dict[str, Any]:
    """The options of uvicorn: every stream is a connection, a thousand more are for everything else."""
    return {
        "http": "asyncbg.connection_limits:BoundedProtocol",
        "ws": "none",
        "server_header": False,
        "limit_concurrency": stream.max_subscribers + _OTHER_CONNECTIONS,
        "timeout_keep_alive": _KEEP_ALIVE_S,
    }


class TooMuchError(httptools.HttpParserError):
    """The head of a request is larger than is taken."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 over httptools, with bounds on a request's head and the time it may take."""

    head_s: ClassVar[float] = 10.0
    """How long a request's line and headers may take, from the first byte or from the connection's start."""
    body_idle_s: ClassVar[float] = 30.0
    """How long nothing of a body may come, while it is wanted."""

    _refusal = http.HTTPStatus.BAD_REQUEST
    _in_head = True
    _head_bytes = 0
    _unanswered = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """Expect a request soon."""
        super().connection_made(transport)
        self._expect(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect no more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes while nothing is finished by it: one endless header is no header yet."""
        self._unanswered += len(data)
        super().data_received(data)
        if self._unanswered > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._deadline is None:
            self._expect(self.head_s)

    def on_url(self, url: bytes) -> None:
        """Take an address of up to 16 KiB."""
        super().on_url(url)
        if len(self.url) > MOST_URL_BYTES:
            self._give_up(http.HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a hundred headers of 64 KiB together; trailers of a chunked body are counted with them."""
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if len(self.headers) > MOST_HEADERS or self._head_bytes > MOST_HEAD_BYTES:
            self._give_up(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head came in time; a body may follow."""
        self._in_head = False
        self._expect(self.body_idle_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of a body are the application's to count."""
        self._unanswered = 0
        self._expect(self.body_idle_s)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there; the next one is counted for itself."""
        self._unanswered = 0
        self._expect_nothing()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or too large a one, with a problem document, and hang up."""
        self._refuse(self._refusal)

    def _give_up(self, status: http.HTTPStatus) -> None:
        self._refusal = status
        raise TooMuchError

    def _refuse(self, status: http.HTTPStatus) -> None:
        if self._is_answering():
            begun, self.cycle.disconnected = self.cycle.response_started, True
            self.cycle.message_event.set()
            if begun:  # what is written into an answer would be read as its part
                self.transport.close()
                return
        body = json.dumps({"type": "about:blank", "title": status.phrase, "status": status.value, "instance": "/"})
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *RAW_HEADERS,
            (b"connection", b"close"),
        ]
        lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *(b"%b: %b" % header for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body.encode()]))
        self.transport.close()

    def _is_answering(self) -> bool:
        return getattr(self.cycle, "response_complete", True) is False

    def _expect(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._hang_up)

    def _hang_up(self) -> None:
        """Nothing came, though it would have been read: not where a body is taken slowly or an answer comes first."""
        if self.flow.read_paused or (self._in_head and self._is_answering()):
            self._expect(self.head_s if self._in_head else self.body_idle_s)
        else:
            self._expect_nothing()
            self.transport.close()

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
