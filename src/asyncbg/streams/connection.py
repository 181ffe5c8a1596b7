"""The connection below a response, as far as its server shows it: what waits in it, and how to end it for good."""

from typing import Protocol, runtime_checkable

from starlette.types import Receive


@runtime_checkable
class _Transport(Protocol):
    """What is asked of a transport; uvloop's are not asyncio's by class."""

    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...


class Connection:
    """Tells a client that takes nothing from one that is slow, and hangs up on it. Times are loop seconds.

    A server that closes a connection first sends what waits, and where nobody reads that is never done: the connection
    would stay, and uvicorn's shutdown would wait for it. ASGI has no message for more, but the ``receive`` of
    uvicorn is a method of the object that has the transport. Where it is not (another server, a middleware that wraps
    ``receive``) nothing is seen here, and the connection ends when the server has no more patience.
    """

    __slots__ = ("_given", "_still_since", "_transport", "_waiting")

    def __init__(self, receive: Receive, *, now: float) -> None:
        """Look at the connection of a request from ``now`` on."""
        transport = getattr(getattr(receive, "__self__", None), "transport", None)
        self._transport = transport if isinstance(transport, _Transport) else None
        self._given = self._waiting = 0
        self._still_since = now

    @property
    def waiting(self) -> int:
        """Bytes that the server holds, since the client has not taken what came before them."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def gave(self, size: int) -> None:
        """``size`` bytes were given to the server."""
        self._given += size

    def look(self, now: float) -> float | None:
        """For how many seconds the client has taken nothing of what waits, as regular looks show it; None: unknown."""
        if self._transport is None:
            return None
        waiting = self.waiting
        if not waiting or waiting < self._waiting + self._given:
            self._still_since = now
        self._waiting, self._given = waiting, 0
        return now - self._still_since

    def hang_up(self) -> None:
        """End it at once; what waits is dropped."""
        if self._transport is not None:
            self._transport.abort()

    def let_go(self) -> None:
        """Hang up where the server is closing it, and cannot since something waits."""
        if self._transport is not None and self._transport.is_closing() and self.waiting:
            self.hang_up()
