"""Worker threads for plain functions: bounded, and counted until each call has ended."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import anyio.to_thread
from anyio import CapacityLimiter


class Threads:
    """Runs plain functions in anyio's worker threads, at most ``limit`` at once on each event loop.

    A thread cannot be stopped. One whose call was cancelled keeps its slot until it ends.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # An engine may be started on several event loops in turn, and a semaphore belongs to one.
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._unbounded = WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter]()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a thread. If cancelled, wait for the thread, then return or raise its outcome."""
        return await self._run(function, waits=True)

    async def run_or_abandon(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a thread. If cancelled, abandon the thread and raise at once."""
        return await self._run(function, waits=False)

    async def clean_up(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a thread, without a slot: others may wait for what it releases.

        If cancelled, wait for the thread, then raise.
        """
        work = asyncio.create_task(self._begin(_Work(function, lambda: None), waits=True), name="asyncbg-clean-up")
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    async def _run(self, function: Callable[[], Any], *, waits: bool) -> Any:
        slots = self._slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._limit))
        await slots.acquire()
        work = _Work(function, slots.release)
        try:
            return await self._begin(work, waits=waits)
        finally:
            if work.abandon():
                slots.release()

    async def _begin(self, work: "_Work", *, waits: bool) -> Any:
        try:
            await anyio.to_thread.run_sync(work, limiter=self._limiter(), abandon_on_cancel=True)
        except asyncio.CancelledError:
            if work.abandon() or not waits:
                raise
            await work.done
        return work.outcome()

    def _limiter(self) -> CapacityLimiter:
        """Return an unlimited limiter: the slots are the limit, since anyio frees its tokens on cancellation."""
        loop = asyncio.get_running_loop()
        if loop not in self._unbounded:
            self._unbounded[loop] = CapacityLimiter(math.inf)
        return self._unbounded[loop]


class _Work:
    """One call, which either starts or is abandoned, and notifies the event loop when it is done."""

    def __init__(self, function: Callable[[], Any], release: Callable[[], None]) -> None:
        self._function = function
        self._release = release
        self._claim = threading.Lock()
        self._is_abandoned = False
        self._loop = asyncio.get_running_loop()
        self._value: Any = None
        self._error: BaseException | None = None
        self.done: asyncio.Future[None] = self._loop.create_future()

    def __call__(self) -> None:
        """Run in the thread. An exception is stored for :meth:`outcome`.

        A GeneratorExit raised by a future would close every coroutine that awaits it.
        """
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001 - raised by outcome()
            self._error = error
        finally:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._end)

    def abandon(self) -> bool:
        """Prevent the call from starting. Return False if it has started."""
        self._is_abandoned = self._is_abandoned or self._claim.acquire(blocking=False)
        return self._is_abandoned

    def outcome(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error  # breaks the reference cycle through the traceback

    def _end(self) -> None:
        self._release()
        if not self.done.done():
            self.done.set_result(None)
