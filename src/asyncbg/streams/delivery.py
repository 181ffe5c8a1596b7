"""How an event stream reaches its client: sent piece by piece, watched, and ended from outside where that is due."""

import asyncio
import math
import zlib

from starlette.responses import Response
from starlette.types import Receive, Send

from asyncbg.bus import Subscription
from asyncbg.streams.connection import Connection
from asyncbg.streams.stream_headers import MEDIA_TYPE, RAW_HEADERS
from asyncbg.streams.view import View


class Delivery(Response):
    """What a stream is for those who do not look into it: it can be woken, told to end, and cut.

    Not FastAPI's EventSourceResponse: the same bytes go to every subscriber, many events in one send.
    """

    media_type = MEDIA_TYPE

    def __init__(self, view: View, status_code: int = 200) -> None:
        """Deliver what ``view`` shows; nothing happens before the response is called."""
        self.status_code = status_code
        self.background = None
        self.raw_headers = list(RAW_HEADERS[view.gzip])
        self.view = view
        self._is_stalled = self._is_revoked = False
        self._sent_at = self._ends_at = self._sending_since = math.inf
        self._gzip = _compressor() if view.gzip else None
        self._subscription: Subscription | None = None
        self._limit: asyncio.Timeout | None = None
        self._send: Send
        self.connection: Connection
        """The one below, once the response was called."""

    def look_at_time(self, now: float, *, send_timeout_s: float, heartbeat_s: float) -> None:
        """End a send that its client does not take; wake the stream when a heartbeat or its own end is due."""
        still_s = self.connection.look(now)
        if (now - self._sending_since if still_s is None else still_s) >= send_timeout_s:
            self._is_stalled = True
            self.cut()
        elif now >= min(self._sent_at + heartbeat_s, self._ends_at):
            self.wake()

    def wake(self) -> None:
        """Make the stream look at the state of things."""
        if self._subscription is not None:
            self._subscription.wake()

    def revoke(self) -> None:
        """End it with a goodbye, since its caller may not look any more."""
        self._is_revoked = True
        self.wake()

    def cut(self) -> None:
        """End it and its connection at once, whatever its client does."""
        self.connection.hang_up()
        self._end()

    async def _watch_client(self, receive: Receive) -> None:
        """A client that left is only told by ``receive``: a server's ``send`` may say nothing."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end()

    def _end(self) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def _put(self, chunk: bytes, *, more: bool = True) -> None:
        """Send ``chunk``, compressed and flushed. It is ended from outside when the client takes nothing."""
        if more and not chunk:
            return
        if self._gzip is not None:
            chunk = self._gzip.compress(chunk) + self._gzip.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)
        self._sending_since = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        self._sent_at, self._sending_since = self._sending_since, math.inf
        self.connection.gave(len(chunk))


def _compressor() -> "zlib._Compress":
    """Gzip (RFC 1952) with a window of 4 KiB: 32 KiB of memory a stream in the place of 256."""
    return zlib.compressobj(level=6, wbits=16 + 12, memLevel=5)
