"""The client connection of a response: how long its client has read nothing, and how to abort it."""

from typing import Protocol, runtime_checkable

from starlette.types import Receive


@runtime_checkable
class _Transport(Protocol):
    """The transport methods used here; uvloop's transports do not inherit from asyncio's."""

    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...


class Connection:
    """The connection that a request came on: distinguishes a stalled client from a slow one. Times are loop seconds.

    A server flushes its write buffer before it closes a connection. Where the client reads nothing, the flush never
    ends and uvicorn's shutdown waits for it. ASGI has no message to abort a connection, but the ``receive`` of uvicorn
    is a method of the object that holds the transport. Where that is not so (another server, a middleware that wraps
    ``receive``), the state of the connection is unknown and aborting it does nothing.
    """

    __slots__ = ("_buffered", "_last_progress_at", "_sent", "_transport")

    def __init__(self, receive: Receive, *, now: float) -> None:
        transport = getattr(getattr(receive, "__self__", None), "transport", None)
        self._transport = transport if isinstance(transport, _Transport) else None
        self._sent = self._buffered = 0
        self._last_progress_at = now

    @property
    def buffered(self) -> int:
        """Number of bytes in the server's write buffer, which the client has not read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def bytes_sent(self, size: int) -> None:
        """Record that ``size`` bytes were handed to the server."""
        self._sent += size

    def stalled_for_s(self, now: float) -> float | None:
        """Return for how long the client has read nothing of what is buffered; None where that is unknown.

        Call it regularly: it compares the write buffer with the previous call.
        """
        if self._transport is None:
            return None
        buffered = self.buffered
        if not buffered or buffered < self._buffered + self._sent:
            self._last_progress_at = now
        self._buffered, self._sent = buffered, 0
        return now - self._last_progress_at

    def abort(self) -> None:
        """Close the connection at once; buffered bytes are dropped."""
        if self._transport is not None:
            self._transport.abort()

    def abort_if_closing(self) -> None:
        """Abort the connection where the server is closing it and cannot finish, because bytes are still buffered."""
        if self._transport is not None and self._transport.is_closing() and self.buffered:
            self.abort()
