"""The worker threads of plain functions: never more than allowed, counted until each has really ended."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter


class Threads:
    """Runs plain functions in anyio's worker threads, at most ``most`` at once.

    A thread cannot be stopped. One whose job was told to stop is waited for, and keeps its seat until it ends.
    """

    def __init__(self, most: int) -> None:
        """Bound the threads."""
        self._seats = asyncio.Semaphore(most)
        self._unbounded = CapacityLimiter(math.inf)  # the seats are the bound; anyio frees its own at a cancellation

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a thread. Cancelled, it goes on to wait for the thread, and gives what that ends in."""
        await self._seats.acquire()
        work = _Work(function, self._seats)
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._unbounded, abandon_on_cancel=True)
        except asyncio.CancelledError:
            if work.give_up():
                raise
            await work.over
            return work.outcome()
        finally:
            if work.give_up():
                self._seats.release()


class _Work:
    """One call, which either begins or is given up, and tells the event loop when it is over."""

    def __init__(self, function: Callable[[], Any], seats: asyncio.Semaphore) -> None:
        self._function = function
        self._seats = seats
        self._claim = threading.Lock()
        self._given_up = False
        self._loop = asyncio.get_running_loop()
        self._value: Any = None
        self._error: BaseException | None = None
        self.over: asyncio.Future[None] = self._loop.create_future()

    def __call__(self) -> Any:
        """Run in the thread."""
        if not self._claim.acquire(blocking=False):
            return None
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
            raise
        finally:
            with contextlib.suppress(RuntimeError):  # the event loop is gone: nobody waits any more
                self._loop.call_soon_threadsafe(self._end)
        return self._value

    def give_up(self) -> bool:
        """Keep it from beginning; False where it began."""
        self._given_up = self._given_up or self._claim.acquire(blocking=False)
        return self._given_up

    def outcome(self) -> Any:
        """What the function returned; what it raised is raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def _end(self) -> None:
        self._seats.release()
        if not self.over.done():
            self.over.set_result(None)
