"""The event bus: what has committed is told to streams, handlers and waiters of this process; none can hold it up.

``publish`` never blocks and never raises because of a consumer. Every queue is bounded and says what it drops:

* a subscription that overflows with stored events is ``lagging``: its reader goes back to the log, nothing is lost;
* progress is kept per job as its latest value;
* a handler that is too slow loses its oldest events, which are counted.
"""

import asyncio
import inspect
import itertools
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from asyncbg.event import FINAL_EVENTS, Event, EventFilter, encode

_log = logging.getLogger(__name__)

Handler = Callable[[Event], Awaitable[object] | object]
"""A coroutine function, or a plain one (run in a worker thread), that takes the event."""

_HANDLER_THREADS = 8
_REST = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStatistics:
    """Counts since the start; ``subscribers`` and ``handlers`` are what there is now."""

    published: int
    delivered: int
    dropped: int
    lagged: int
    subscribers: int
    handlers: int
    handler_errors: int


class Published:
    """An event on its way to subscribers. Its SSE frame is made once, when the first of them asks for it."""

    __slots__ = ("_wire", "event")

    def __init__(self, event: Event) -> None:
        """Carry ``event``, not encoded yet."""
        self.event = event
        self._wire: bytes | None = None

    def wire(self, epoch: str) -> bytes:
        """The event as one SSE frame."""
        if self._wire is None:
            self._wire = encode(self.event, epoch)
        return self._wire


class Chunk:
    """What goes to the subscribers of one filter at once: stored events of one commit in order, or one progress.

    It is made once for all of them, and so is the join of its frames.
    """

    __slots__ = ("_wire", "is_progress", "many", "published")

    def __init__(self, published: list[Published]) -> None:
        """Carry ``published``, at least one."""
        self.published = published
        self.many = len(published)
        self.is_progress = not published[0].event.seq
        self._wire: bytes | None = None

    def wire(self, epoch: str) -> bytes:
        """All of it as SSE frames."""
        if self._wire is None:
            self._wire = b"".join([one.wire(epoch) for one in self.published])
        return self._wire


_NOTHING: Sequence[Chunk] = ()


class _Wake:
    """One reader waits here; ``set`` wakes it. A future and a timer cost less than a task for ``asyncio.wait_for``."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[bool] | None = None

    def set(self, value: bool = True) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(value)

    def wait(self, timeout_s: float | None) -> Awaitable[bool]:
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter if timeout_s is None else self._wait_for(self._waiter, timeout_s)

    async def _wait_for(self, waiter: asyncio.Future[bool], timeout_s: float) -> bool:
        timer = waiter.get_loop().call_later(timeout_s, self.set, False)
        try:
            return await waiter
        finally:
            timer.cancel()


class Subscription:
    """What one consumer has not taken yet. Made by ``EventBus.subscribe``; ``close`` it, or use it as a context."""

    __slots__ = ("_buffer", "_bus", "_group", "_latest", "_limit", "_stored", "_wake", "closing", "lagging")

    def __init__(self, bus: "EventBus", group: "_Group", limit: int) -> None:
        """Hold up to ``limit`` stored events, and the progress of up to ``limit`` jobs."""
        self.lagging = False
        """Whether stored events were dropped: read the log from your cursor on, after ``reset``."""
        self.closing = False
        """Whether the bus is being drained: no more events come."""
        self._bus = bus
        self._group = group
        self._limit = limit
        self._buffer: list[Chunk] = []
        self._latest: dict[str, int] = {}
        self._stored = 0
        self._wake = _Wake()

    def take(self) -> list[Event]:
        """All that is pending, in order."""
        return [one.event for chunk in self.take_chunks() for one in chunk.published]

    def take_chunks(self) -> Sequence[Chunk]:
        """All that is pending, in order, with the frames that subscribers share."""
        if not self._buffer:
            return _NOTHING
        pending, self._buffer = self._buffer, []
        self._stored = 0
        if self._latest:
            self._latest.clear()
        return pending

    def reset(self) -> None:
        """Start collecting again after ``lagging``."""
        self.take_chunks()
        self.lagging = False

    def drop_progress(self) -> None:
        """Forget the progress that is pending: the reader knows better by now."""
        self._buffer = [chunk for chunk in self._buffer if not chunk.is_progress]
        self._latest.clear()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is something to take, to catch up with, or the end. False: the time was over first."""
        if self._buffer or self.lagging or self.closing:
            return True
        return await self._wake.wait(timeout_s)

    def wake(self) -> None:
        """Make ``wait`` return."""
        self._wake.set()

    def close(self) -> None:
        """Collect no more."""
        self.closing = True
        self._bus._leave(self._group, self)  # noqa: SLF001, RUF100 - one unit with the bus
        self.reset()
        self.wake()

    def __enter__(self) -> Self:
        """Use as a context that closes it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close."""
        self.close()

    def push(self, chunk: Chunk) -> int:
        """Called by the bus: collect ``chunk``; returns how many events were dropped for it."""
        if self.lagging:
            return chunk.many
        if not self._buffer:
            self._wake.set()  # who waits has nothing pending
        if chunk.is_progress:
            return self._push_progress(chunk)
        if self._latest:
            for one in chunk.published:
                self._latest.pop(one.event.job_id, None)
        self._buffer.append(chunk)
        self._stored += chunk.many
        return 0 if self._stored <= self._limit else self._overflow()

    def _overflow(self) -> int:
        self.lagging = True
        self._bus._lagged += 1  # noqa: SLF001, RUF100 - one unit with the bus
        return sum(pending.many for pending in self.take_chunks())

    def _push_progress(self, chunk: Chunk) -> int:
        """Progress takes the place of the job's progress before it, unless the job's own events lie between."""
        job_id = chunk.published[0].event.job_id
        if (at := self._latest.get(job_id)) is not None:
            self._buffer[at] = chunk
        elif len(self._latest) < self._limit:
            self._latest[job_id] = len(self._buffer)
            self._buffer.append(chunk)
        else:
            return 1
        return 0


class _Group:
    """The subscriptions that share one filter: an event is matched once for all of them."""

    __slots__ = ("is_exact", "members", "pending", "wanted")

    def __init__(self, wanted: EventFilter) -> None:
        self.wanted = wanted
        self.members: set[Subscription] = set()
        self.pending: list[Published] = []
        indexed = sum(map(bool, (wanted.jobs, wanted.batches, wanted.tasks)))
        self.is_exact = indexed <= 1 and not wanted.types and wanted.owner is None
        """Whether the place in the index says all that the filter says."""


class FinalWait:
    """Waits for the final event of one job. Registered when made, so: make it, then look at the job, then wait."""

    __slots__ = ("_bus", "_event", "_job_id", "_wake")

    def __init__(self, bus: "EventBus", job_id: str) -> None:
        """Register at ``bus`` for ``job_id``."""
        self._bus = bus
        self._job_id = job_id
        self._event: Event | None = None
        self._wake = _Wake()

    async def wait(self, timeout_s: float | None = None) -> Event | None:
        """The job's final event, or None when the time is over."""
        if self._event is None:
            await self._wake.wait(timeout_s)
        return self._event

    def tell(self, event: Event) -> None:
        """Called by the bus."""
        self._event = event
        self._wake.set()

    def __enter__(self) -> Self:
        """Use as a context that lets go of the bus."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Let go of the bus."""
        self._bus._forget(self._job_id, self)  # noqa: SLF001, RUF100 - one unit with the bus


class _HandlerQueue:
    """One handler, its bounded queue and the loop that feeds it."""

    def __init__(self, pattern: str, handler: Handler, task: str | None, limit: int) -> None:
        self.pattern = pattern
        self.task = task
        self.name = f"{getattr(handler, '__module__', '?')}:{getattr(handler, '__qualname__', type(handler).__name__)}"
        self.errors = 0
        self._handler = handler
        self._is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004 - it is the method's kind that is asked for
        )
        self._queue: deque[Event] = deque(maxlen=limit)
        self._wake = _Wake()
        self._idle = asyncio.Event()
        self._idle.set()

    def wants(self, event_type: str) -> bool:
        if self.pattern.endswith("*"):
            return event_type.startswith(self.pattern[:-1])
        return event_type == self.pattern

    def push(self, event: Event) -> int:
        """Queue ``event``; returns how many older ones it pushed out."""
        dropped = int(len(self._queue) == self._queue.maxlen)
        self._queue.append(event)
        self._idle.clear()
        self._wake.set()
        return dropped

    async def run(self, threads: anyio.CapacityLimiter) -> None:
        while True:
            while self._queue:
                await self._handle(self._queue.popleft(), threads)
            self._idle.set()
            await self._wake.wait(None)

    async def join(self) -> None:
        await self._idle.wait()

    async def _handle(self, event: Event, threads: anyio.CapacityLimiter) -> None:
        try:
            result = (
                self._handler(event)
                if self._is_async
                else await anyio.to_thread.run_sync(self._handler, event, abandon_on_cancel=True, limiter=threads)
            )
            if inspect.isawaitable(result):
                await result
        except Exception as error:  # noqa: BLE001 - a handler can never hurt the publisher, nor its own next event
            self.errors += 1
            # The frames only: an exception's message may quote the event's data.
            frames = "".join(traceback.format_tb(error.__traceback__))
            _log.error("event handler %s failed with %s; it goes on\n%s", self.name, type(error).__name__, frames)


class EventBus:
    """Tells the events of this process's commits to whoever wants them. All methods belong to the event loop."""

    def __init__(self, *, buffer: int = 1000) -> None:
        """Hold up to ``buffer`` events for each consumer."""
        self.epoch = ""
        """The name of the database; a part of every event's id on the wire."""
        self.last_seq = 0
        """The position of the log up to which everything was published."""
        self.life = 0
        """How often the engine was started."""
        self.turns = 0
        """How often something was published, whatever number of events at once."""
        self._buffer = buffer
        self._groups: dict[EventFilter, _Group] = {}
        self._index: dict[str, list[_Group]] = {}
        self._is_drained = False
        self._waiters: dict[str, list[FinalWait]] = {}
        self._handlers: list[_HandlerQueue] = []
        self._handlers_of: dict[str, tuple[_HandlerQueue, ...]] = {}
        self._task_group: TaskGroup | None = None
        self._threads: anyio.CapacityLimiter | None = None
        self._has_consumers = False
        self._published = self._delivered = self._dropped = self._lagged = 0

    def start(self, *, epoch: str, last_seq: int) -> None:
        """Begin a life of the engine: the database is ``epoch``, its log is written up to ``last_seq``."""
        self.epoch = epoch
        self.last_seq = last_seq
        self.life += 1
        self._is_drained = False

    def publish(self, events: Sequence[Event]) -> None:
        """Tell ``events``: stored ones in the order of ``seq``, or progress (``seq`` 0). Returns at once."""
        if not events:
            return
        self._published += len(events)
        self.turns += 1
        last_seq = events[-1].seq or max(event.seq for event in events)
        if last_seq > self.last_seq:
            self.last_seq = last_seq
        if self._has_consumers:
            self._tell_waiters(events)
            self._tell_subscriptions(events)
            self._tell_handlers(events)

    def subscribe(self, wanted: EventFilter) -> Subscription:
        """Collect from now on what ``wanted`` matches."""
        group = self._groups.get(wanted)
        if group is None:
            group = self._groups[wanted] = _Group(wanted)
            for key in self._keys(wanted):
                self._index.setdefault(key, []).append(group)
        subscription = Subscription(self, group, self._buffer)
        subscription.closing = self._is_drained
        group.members.add(subscription)
        self._has_consumers = True
        return subscription

    def on(self, event_type: str, handler: Handler, *, task: str | None = None) -> None:
        """Call ``handler`` with every event of ``event_type`` (``"job.failed"``, ``"job.*"``, ``"*"``) and ``task``.

        Each handler has its own queue and is called with one event at a time, in order, while ``run_handlers`` runs.
        A plain function is called in a worker thread. What it raises is logged and counted.
        """
        queue = _HandlerQueue(event_type, handler, task, self._buffer)
        self._handlers.append(queue)
        self._handlers_of.clear()
        self._has_consumers = True
        if self._task_group is not None and self._threads is not None:
            self._task_group.start_soon(queue.run, self._threads, name=f"asyncbg handler {queue.name}")

    def expect_final(self, job_id: str) -> FinalWait:
        """Register for the job's final event; use it as a context, so that nothing falls between look and wait."""
        waiting = FinalWait(self, job_id)
        self._waiters.setdefault(job_id, []).append(waiting)
        self._has_consumers = True
        return waiting

    async def wait_final(self, job_id: str, timeout_s: float | None = None) -> Event | None:
        """The job's next final event, or None when the time is over."""
        with self.expect_final(job_id) as waiting:
            return await waiting.wait(timeout_s)

    async def run_handlers(self) -> None:
        """Feed the handlers until cancelled."""
        self._threads = anyio.CapacityLimiter(_HANDLER_THREADS)
        try:
            async with anyio.create_task_group() as self._task_group:
                for queue in self._handlers:
                    self._task_group.start_soon(queue.run, self._threads, name=f"asyncbg handler {queue.name}")
                await anyio.sleep_forever()
        finally:
            self._task_group = None

    async def join_handlers(self, timeout_s: float) -> bool:
        """Wait until every handler has dealt with what it was given. False: the time was over first."""
        with anyio.move_on_after(timeout_s):
            for queue in self._handlers:
                await queue.join()
            return True
        return False

    def drain(self) -> None:
        """End all subscriptions, later ones too: their readers take what is left and see ``closing``."""
        self._is_drained = True
        for group in self._groups.values():
            for subscription in group.members:
                subscription.closing = True
                subscription.wake()

    def statistics(self) -> BusStatistics:
        """What went through."""
        return BusStatistics(
            published=self._published,
            delivered=self._delivered,
            dropped=self._dropped,
            lagged=self._lagged,
            subscribers=sum(len(group.members) for group in self._groups.values()),
            handlers=len(self._handlers),
            handler_errors=sum(queue.errors for queue in self._handlers),
        )

    def _tell_waiters(self, events: Sequence[Event]) -> None:
        if self._waiters:
            for event in events:
                if event.type in FINAL_EVENTS:
                    for waiting in self._waiters.get(event.job_id, ()):
                        waiting.tell(event)

    def _tell_subscriptions(self, events: Sequence[Event]) -> None:
        if not self._groups:
            return
        touched: list[_Group] = []
        for event in events:
            published: Published | None = None
            for group in self._interested(event):
                if group.is_exact or group.wanted.matches(event):
                    published = published or Published(event)
                    if not group.pending:
                        touched.append(group)
                    group.pending.append(published)
        for group in touched:
            self._hand_over(group)

    def _interested(self, event: Event) -> Iterable[_Group]:
        """The groups whose place in the index fits; each at most once, since it has its places in one dimension."""
        get = self._index.get
        return (
            *get(event.job_id, ()),
            *get("batch " + event.batch, ()),
            *get("task " + event.task, ()),
            *get(_REST, ()),
        )

    def _hand_over(self, group: _Group) -> None:
        pending, group.pending = group.pending, []
        for chunk in _chunks(pending):
            self._delivered += chunk.many * len(group.members)
            for subscription in group.members:
                if dropped := subscription.push(chunk):
                    self._delivered -= min(dropped, chunk.many)
                    self._dropped += dropped

    def _tell_handlers(self, events: Sequence[Event]) -> None:
        if not self._handlers:
            return
        for event in events:
            queues = self._handlers_of.get(event.type)
            if queues is None:
                queues = tuple(queue for queue in self._handlers if queue.wants(event.type))
                self._handlers_of[event.type] = queues
            for queue in queues:
                if queue.task is None or queue.task == event.task:
                    self._dropped += queue.push(event)

    @staticmethod
    def _keys(wanted: EventFilter) -> Iterable[str]:
        """Where in the index a filter belongs: under its narrowest dimension, or under the rest."""
        if wanted.jobs:
            return wanted.jobs
        batches = [f"batch {batch}" for batch in wanted.batches]
        return batches or [f"task {task}" for task in wanted.tasks] or [_REST]

    def _leave(self, group: _Group, subscription: Subscription) -> None:
        group.members.discard(subscription)
        if group.members or self._groups.get(group.wanted) is not group:
            return
        del self._groups[group.wanted]
        for key in self._keys(group.wanted):
            self._index[key].remove(group)
            if not self._index[key]:
                del self._index[key]
        self._note_consumers()

    def _forget(self, job_id: str, waiting: FinalWait) -> None:
        remaining = [other for other in self._waiters.get(job_id, ()) if other is not waiting]
        if remaining:
            self._waiters[job_id] = remaining
        else:
            self._waiters.pop(job_id, None)
        self._note_consumers()

    def _note_consumers(self) -> None:
        self._has_consumers = bool(self._groups or self._handlers or self._waiters)


def _chunks(pending: list[Published]) -> Iterator[Chunk]:
    """Runs of stored events, and each progress by itself."""
    for is_stored, run in itertools.groupby(pending, lambda published: published.event.seq > 0):
        if is_stored:
            yield Chunk(list(run))
        else:
            yield from (Chunk([progress]) for progress in run)
