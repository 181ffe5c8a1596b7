"""Limits on connections and request heads of ``asyncbg serve`` that uvicorn does not offer.

uvicorn with httptools keeps every header and waits for the rest of a request without a timeout: an endless head fills
the memory, and thousands of incomplete requests (Slowloris) exhaust the file descriptors. llhttp refuses requests
whose length is ambiguous (request smuggling, RFC 9112, 11.2); ``tests/api/test_connection_limits.py`` covers both.
"""

import asyncio
import http
import json
import logging
import resource
import sys
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from asyncbg.settings import StreamSettings
from asyncbg.web.headers import RAW_HEADERS

MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_URL_BYTES: Final = 16 * 1024
_OTHER_CONNECTIONS: Final = 1_000
_KEEP_ALIVE_S: Final = 5
_RESERVED_FILES: Final = 256
"""File descriptors kept free for everything else: the database, uploads, tasks, webhooks and refused connections."""
_MAX_REFUSALS: Final = 32
_RETRY_AFTER_S: Final = 5
_SHUTDOWN_WAIT_S: Final = 1.0
_BUSY: Final = "all connections of the service are in use; try again"
_STOPPING: Final = "the service stopped before the whole request had come; send it again"
_OUT_OF_FILES: Final = "socket.accept() out of system resource"
_LOG_INTERVAL_S: Final = 60.0

logger = logging.getLogger("asyncbg")


def connection_limits(stream: StreamSettings) -> dict[str, Any]:
    """Return the options for uvicorn: one connection for each stream, and a thousand more for other requests.

    Raises the soft limit of file descriptors to the hard limit, and keeps some of them free for files and sockets
    that are not client connections.
    """
    wanted, files = stream.max_subscribers + _OTHER_CONNECTIONS, _raise_file_limit()
    most = min(wanted, files - min(_RESERVED_FILES, files // 4))
    if most < wanted:
        logger.warning(
            "accepting at most %d connections, not %d: the process may open %d files; raise that with ulimit -Hn, or "
            "LimitNOFILE= of systemd", most, wanted, files,
        )  # fmt: skip
    logging.getLogger("asyncio").addFilter(_once_per_minute)
    return {
        "http": "asyncbg.service.connection_limits:BoundedProtocol",
        "ws": "none",
        "server_header": False,
        "limit_concurrency": most,
        "timeout_keep_alive": _KEEP_ALIVE_S,
    }


def _raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard limit. Return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            logger.warning("the limit of %d open files cannot be raised to %d: %s", soft, hard, error)
        else:
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


class _OncePerMinute(logging.Filter):
    """Filter that passes asyncio's "out of file descriptors" error once a minute instead of thousands of times."""

    def __init__(self) -> None:
        super().__init__()
        self._silent_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a repeat of that error within a minute, True for every other record."""
        if not record.getMessage().startswith(_OUT_OF_FILES):
            return True
        is_due = record.created >= self._silent_until
        if is_due:
            self._silent_until = record.created + _LOG_INTERVAL_S
            record.msg, record.args = f"{_OUT_OF_FILES}: no descriptor is left for a connection; raise ulimit -n", None
            record.exc_info = record.exc_text = None
        return is_due


_once_per_minute: Final = _OncePerMinute()


class RequestTooLargeError(httptools.HttpParserError):
    """The request is refused: its head is too large or malformed, or there are too many connections."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with limits on connections, on a request's head and on the time it takes."""

    head_s: ClassVar[float] = 10.0
    """Timeout of a request's head, from the first byte or from the start of the connection, in seconds."""
    body_idle_s: ClassVar[float] = 30.0
    """Idle timeout while the application reads a request body, in seconds."""

    _refusal = http.HTTPStatus.BAD_REQUEST
    _in_head = True
    _head_bytes = 0
    _unparsed_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    _max_connections: int | None = None
    _is_refused = False
    _is_lingering = False
    _waiting_of: ClassVar[WeakKeyDictionary[ServerState, "dict[BoundedProtocol, None]"]] = WeakKeyDictionary()
    """The connections of each server that have not sent a complete head, oldest first."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """Start the head timeout. At the connection limit, close the oldest connection without a request."""
        super().connection_made(transport)
        self._max_connections, self.limit_concurrency = (
            self.limit_concurrency,
            None,
        )  # uvicorn would answer in plain text
        self._set_deadline(self.head_s)
        self._waiting[self] = None
        if self._max_connections is not None and len(self.connections) > self._max_connections:
            self._evict_or_refuse(self._max_connections)

    @property
    def _waiting(self) -> "dict[BoundedProtocol, None]":
        return self._waiting_of.setdefault(self.server_state, {})

    def _evict_or_refuse(self, most: int) -> None:
        oldest = next(iter(self._waiting))
        if oldest is not self:
            oldest.transport.abort()
            self._waiting.pop(oldest, None)
        elif len(self.connections) <= most + _MAX_REFUSALS:
            self._is_refused = True  # answered after its head: an earlier response would be lost
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout and remove the connection."""
        self._clear_deadline()
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of an incomplete head: the parser reports a header only when it is complete."""
        if self._is_lingering:
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._respond_and_close(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Reset the counters for the next request."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._deadline is None:
            self._set_deadline(self.head_s)

    def on_url(self, url: bytes) -> None:
        """Refuse a request target of more than 16 KiB with 414."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._reject(http.HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse more than 100 headers or 64 KiB of them with 431; trailers of a chunked body count too."""
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._head_bytes > MAX_HEAD_BYTES:
            self._reject(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Switch to the body timeout. Refuse a request without exactly one Host header (RFC 9112, 3.2)."""
        self._waiting.pop(self, None)
        if self._is_refused:
            self._reject(http.HTTPStatus.SERVICE_UNAVAILABLE)
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._reject(http.HTTPStatus.BAD_REQUEST)
        self._in_head = False
        self._set_deadline(self.body_idle_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Restart the idle timeout. The application limits the size of the body."""
        self._unparsed_bytes = 0
        self._set_deadline(self.body_idle_s)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Reset the counters and the timeout for the next request."""
        self._unparsed_bytes = 0
        self._clear_deadline()
        super().on_message_complete()

    def shutdown(self) -> None:
        """Shut down; refuse a request whose body is still incomplete shortly before uvicorn cancels it."""
        super().shutdown()
        if self._awaits_body():
            self.loop.call_later(self._shutdown_wait_s(), self._reject_unread_body)

    def _awaits_body(self) -> bool:
        return self._is_answering() and self.cycle.more_body and not self.transport.is_closing()

    def _shutdown_wait_s(self) -> float:
        """Return one second, or half of uvicorn's graceful timeout if that is shorter."""
        graceful_s = self.config.timeout_graceful_shutdown
        return _SHUTDOWN_WAIT_S if graceful_s is None else min(_SHUTDOWN_WAIT_S, graceful_s / 2)

    def _reject_unread_body(self) -> None:
        if self._awaits_body():
            self._respond_and_close(http.HTTPStatus.SERVICE_UNAVAILABLE, _STOPPING)

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed or too large request with a problem document, and close the connection."""
        self._respond_and_close(self._refusal, _BUSY if self._is_refused else "")

    def _reject(self, status: http.HTTPStatus) -> None:
        self._refusal = status
        raise RequestTooLargeError

    def _respond_and_close(self, status: http.HTTPStatus, detail: str = "") -> None:
        if self._is_lingering:
            return
        if self._is_answering():
            begun, self.cycle.disconnected = self.cycle.response_started, True
            self.cycle.message_event.set()
            if begun:  # a second response would be read as part of the first
                self.transport.close()
                return
        problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "instance": "/"}
        body = json.dumps(problem | ({"detail": detail} if detail else {}))
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *RAW_HEADERS,
            *([(b"retry-after", b"%d" % _RETRY_AFTER_S)] if status is http.HTTPStatus.SERVICE_UNAVAILABLE else []),
            (b"connection", b"close"),
        ]
        lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *(b"%b: %b" % header for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body.encode()]))
        self._linger()

    def _linger(self) -> None:
        """Half-close and discard further input for a moment: closing with unread bytes resets the connection.

        A reset discards the response, which clients read only after sending their body.
        """
        self._is_lingering = True
        self._clear_deadline()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._deadline = self.loop.call_later(self._shutdown_wait_s() / 2, self.transport.close)

    def _is_answering(self) -> bool:
        return getattr(self.cycle, "response_complete", True) is False

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._close_late)

    def _close_late(self) -> None:
        """Close an idle connection, unless the application has paused reading or is still responding."""
        if self.flow.read_paused or (self._in_head and self._is_answering()):
            self._set_deadline(self.head_s if self._in_head else self.body_idle_s)
        else:
            self._clear_deadline()
            self.transport.close()

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
