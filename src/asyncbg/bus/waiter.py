"""Waiters: one reader that waits to be woken, and the waiters for the final events of jobs."""

import asyncio
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Self

from asyncbg.core.error_log import ErrorLog
from asyncbg.core.event import FINAL_EVENTS, Event


class Waiter:
    """An event for a single reader. A future and a timer cost less than the task of ``asyncio.wait_for``."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[bool] | None = None

    def set(self, value: bool = True) -> None:
        """Wake the reader with ``value``, if it waits."""
        if self._future is not None and not self._future.done():
            self._future.set_result(value)

    def wait(self, timeout_s: float | None) -> Awaitable[bool]:
        """Wait until :meth:`set`; resolves to False on timeout."""
        self._future = asyncio.get_running_loop().create_future()
        return self._future if timeout_s is None else self._wait_for(self._future, timeout_s)

    async def _wait_for(self, waiter: asyncio.Future[bool], timeout_s: float) -> bool:
        timer = waiter.get_loop().call_later(timeout_s, self.set, False)
        try:
            return await waiter
        finally:
            timer.cancel()


class FinalEventWaiter:
    """A waiter for the final event of one job. It is registered on creation: create it, read the job, then wait."""

    __slots__ = ("_event", "_job_id", "_waiter", "_waits")

    def __init__(self, waits: "FinalEventWaiters", job_id: str) -> None:
        self._waits = waits
        self._job_id = job_id
        self._event: Event | None = None
        self._waiter = Waiter()

    async def wait(self, timeout_s: float | None = None) -> Event | None:
        """Return the job's final event, or None on timeout."""
        if self._event is None:
            await self._waiter.wait(timeout_s)
        return self._event

    def resolve(self, event: Event) -> None:
        """Store the final event and wake the reader."""
        self._event = event
        self._waiter.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._waits.remove(self._job_id, self)


class FinalEventWaiters:
    """All waiters for final events, by job."""

    def __init__(self, errors: ErrorLog) -> None:
        self._errors = errors
        self._waiting: dict[str, list[FinalEventWaiter]] = {}

    def expect(self, job_id: str) -> FinalEventWaiter:
        """Register a waiter for the job's final event."""
        waiting = FinalEventWaiter(self, job_id)
        self._waiting.setdefault(job_id, []).append(waiting)
        return waiting

    def remove(self, job_id: str, waiting: FinalEventWaiter) -> None:
        """Remove a waiter."""
        remaining = [other for other in self._waiting.get(job_id, ()) if other is not waiting]
        if remaining:
            self._waiting[job_id] = remaining
        else:
            self._waiting.pop(job_id, None)

    def clear(self) -> None:
        """Drop all waiters."""
        self._waiting.clear()

    def dispatch(self, events: Sequence[Event]) -> None:
        """Resolve the waiters of the final events among ``events``."""
        if self._waiting:
            for event in events:
                if event.type in FINAL_EVENTS:
                    for waiting in self._waiting.get(event.job_id, ()):
                        try:
                            waiting.resolve(event)
                        except RuntimeError as error:  # the event loop of the waiter was closed
                            self._errors.add("bus", error, "a waiter for a job cannot be woken", is_ours=True)
