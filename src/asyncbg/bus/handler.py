"""Event handlers: each has a bounded queue and receives one event at a time; its errors do not reach the publisher."""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio

from asyncbg.bus.waiter import Waiter
from asyncbg.core.error_log import ErrorLog, capture, ends_task
from asyncbg.core.event import Event
from asyncbg.core.function_name import display_name
from asyncbg.core.supervisor import Supervisor

Handler = Callable[[Event], Awaitable[object] | object]
"""A coroutine function, or a plain one (run in a worker thread), that takes the event."""

_THREADS = 8


class _HandlerQueue:
    """One handler, its bounded queue and the loop that calls it."""

    def __init__(self, pattern: str, handler: Handler, task: str | None, limit: int, errors: ErrorLog) -> None:
        self.pattern = pattern
        self.task = task
        self.name = display_name(handler)
        self.errors = 0
        self._log = errors
        self._handler = handler
        self._is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004 - the method is inspected, not called
        )
        self._queue: deque[Event] = deque(maxlen=limit)
        self._waiter = Waiter()
        self._idle = asyncio.Event()
        self._idle.set()

    def wants(self, event_type: str) -> bool:
        if self.pattern.endswith("*"):
            return event_type.startswith(self.pattern[:-1])
        return event_type == self.pattern

    def push(self, event: Event) -> int:
        """Queue ``event``. Return the number of older events dropped for it."""
        dropped = int(len(self._queue) == self._queue.maxlen)
        self._queue.append(event)
        self._idle.clear()
        self._waiter.set()
        return dropped

    async def run(self, threads: anyio.CapacityLimiter) -> None:
        while True:
            while self._queue:
                await self._handle(self._queue.popleft(), threads)
            self._idle.set()
            await self._waiter.wait(None)

    async def join(self) -> None:
        await self._idle.wait()

    def renew(self) -> None:
        """Bind to another event loop; the queue is kept."""
        self._waiter, self._idle = Waiter(), asyncio.Event()
        if not self._queue:
            self._idle.set()

    async def _handle(self, event: Event, threads: anyio.CapacityLimiter) -> None:
        try:
            result = self._handler(event) if self._is_async else await self._in_thread(event, threads)
            if inspect.isawaitable(result):
                await result
        except BaseException as error:
            if ends_task(error):
                raise
            self.errors += 1
            self._log.add(
                "handler",
                error,
                "event handler %s failed with %s; it stays active",
                self.name,
                type(error).__name__,
            )

    async def _in_thread(self, event: Event, threads: anyio.CapacityLimiter) -> object:
        result, error = await anyio.to_thread.run_sync(
            capture, self._handler, event, abandon_on_cancel=True, limiter=threads
        )
        if error is not None:
            raise error
        return result


class Handlers:
    """All handlers and their queues; handlers are called while :meth:`run` runs."""

    def __init__(self, limit: int, errors: ErrorLog) -> None:
        """Queue up to ``limit`` events for each handler."""
        self.dropped = 0
        self.supervisor = Supervisor()
        """Runs one loop for each handler."""
        self._limit = limit
        self._errors = errors
        self._queues: list[_HandlerQueue] = []
        self._queues_of: dict[str, tuple[_HandlerQueue, ...]] = {}
        self._threads: anyio.CapacityLimiter | None = None

    def __len__(self) -> int:
        """Return the number of handlers."""
        return len(self._queues)

    @property
    def errors(self) -> int:
        """Number of exceptions raised by handlers."""
        return sum(queue.errors for queue in self._queues)

    def wants(self, event_type: str) -> bool:
        """Whether any handler receives events of this type."""
        return any(queue.wants(event_type) for queue in self._queues)

    def add(self, event_type: str, handler: Handler, *, task: str | None) -> None:
        """Call ``handler`` with every event of ``event_type`` and ``task``."""
        queue = _HandlerQueue(event_type, handler, task, self._limit, self._errors)
        self._queues.append(queue)
        self._queues_of.clear()
        if self._threads is not None:
            self._start(len(self._queues) - 1, self._threads)

    async def run(self) -> None:
        """Run the handlers until cancelled."""
        self._threads = anyio.CapacityLimiter(_THREADS)
        try:
            for number in range(len(self._queues)):
                self._start(number, self._threads)
            await anyio.sleep_forever()
        finally:
            await self.supervisor.stop()
            self.abandon()

    def _start(self, number: int, threads: anyio.CapacityLimiter) -> None:
        queue = self._queues[number]
        self.supervisor.start(f"handler {number} {queue.name}", partial(queue.run, threads))

    def abandon(self) -> None:
        """Stop calling the handlers. The queues are kept for the next :meth:`run`, on any event loop."""
        self._threads = None
        self.supervisor.drop()
        for queue in self._queues:
            queue.renew()

    async def join(self, timeout_s: float) -> bool:
        """Wait until every handler has processed its queue. Return False on timeout."""
        with anyio.move_on_after(timeout_s):
            for queue in self._queues:
                await queue.join()
            return True
        return False

    def dispatch(self, events: Sequence[Event]) -> None:
        """Queue ``events`` for the handlers that receive them."""
        if not self._queues:
            return
        for event in events:
            queues = self._queues_of.get(event.type)
            if queues is None:
                queues = tuple(queue for queue in self._queues if queue.wants(event.type))
                self._queues_of[event.type] = queues
            for queue in queues:
                if queue.task is None or queue.task == event.task:
                    self.dropped += queue.push(event)
