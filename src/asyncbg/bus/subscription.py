"""Subscriptions: the pending events of each consumer, and the index that matches events to them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from asyncbg.bus.waiter import Waiter
from asyncbg.core.error_log import ErrorLog
from asyncbg.core.event import Event, EventFilter, encode


class Published:
    """A published event. Its SSE frame is encoded once, when the first subscriber requests it."""

    __slots__ = ("_wire", "event")

    def __init__(self, event: Event) -> None:
        self.event = event
        self._wire: bytes | None = None

    def wire(self, epoch: str) -> bytes:
        """Return the event as one SSE frame."""
        if self._wire is None:
            self._wire = encode(self.event, epoch)
        return self._wire


class Chunk:
    """A unit of delivery for one filter: the stored events of one commit in order, or one progress event.

    All subscribers of the filter share it, and the concatenation of its frames.
    """

    __slots__ = ("_wire", "is_progress", "many", "published")

    def __init__(self, published: list[Published]) -> None:
        self.published = published
        self.many = len(published)
        self.is_progress = not published[0].event.seq
        self._wire: bytes | None = None

    def wire(self, epoch: str) -> bytes:
        """Return its events as SSE frames."""
        if self._wire is None:
            self._wire = b"".join([one.wire(epoch) for one in self.published])
        return self._wire


def chunks(pending: list[Published]) -> Iterator[Chunk]:
    """Group consecutive stored events; each progress event is a chunk of its own."""
    for is_stored, run in itertools.groupby(pending, lambda published: published.event.seq > 0):
        if is_stored:
            yield Chunk(list(run))
        else:
            yield from (Chunk([progress]) for progress in run)


_NOTHING: Sequence[Chunk] = ()
_REST = ""


class Subscription:
    """The pending events of one consumer. ``close`` it, or use it as a context manager."""

    __slots__ = ("_buffer", "_group", "_index", "_latest", "_limit", "_stored", "_waiter", "closing", "lagging")

    def __init__(self, index: "SubscriptionIndex", group: "_Group", limit: int) -> None:
        """Buffer up to ``limit`` stored events, and the progress of up to ``limit`` jobs."""
        self.lagging = False
        """Whether stored events were dropped: call ``reset``, then read the log from your cursor."""
        self.closing = False
        """Whether the bus is draining: no more events will arrive."""
        self._index = index
        self._group = group
        self._limit = limit
        self._buffer: list[Chunk] = []
        self._latest: dict[str, int] = {}
        self._stored = 0
        self._waiter = Waiter()

    def take(self) -> list[Event]:
        """Return all pending events, in order."""
        return [one.event for chunk in self.take_chunks() for one in chunk.published]

    def take_chunks(self) -> Sequence[Chunk]:
        """Return all pending chunks, in order, with the frames that subscribers share."""
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
        """Drop pending progress: the reader has newer progress."""
        self._buffer = [chunk for chunk in self._buffer if not chunk.is_progress]
        self._latest.clear()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until events are pending, events were dropped, or the bus is draining. Return False on timeout."""
        if self._buffer or self.lagging or self.closing:
            return True
        return await self._waiter.wait(timeout_s)

    def wake(self) -> None:
        """Make ``wait`` return."""
        self._waiter.set()

    def close(self) -> None:
        """Unsubscribe."""
        self.closing = True
        self._index.remove(self._group, self)
        self.reset()
        self.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def push(self, chunk: Chunk) -> int:
        """Append ``chunk``; called by the bus. Return the number of events dropped."""
        if self.lagging:
            return chunk.many
        if not self._buffer:
            self._waiter.set()  # a reader only waits while nothing is pending
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
        self._index.lagged += 1
        return sum(pending.many for pending in self.take_chunks())

    def _push_progress(self, chunk: Chunk) -> int:
        """Replace the job's pending progress, unless stored events of the job came after it."""
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
    """Subscriptions that share one filter, so that an event is matched once for all of them."""

    __slots__ = ("is_exact", "members", "pending", "wanted")

    def __init__(self, wanted: EventFilter) -> None:
        self.wanted = wanted
        self.members: set[Subscription] = set()
        self.pending: list[Published] = []
        indexed = sum(map(bool, (wanted.jobs, wanted.batches, wanted.tasks)))
        self.is_exact = indexed <= 1 and not wanted.types and wanted.owner is None
        """Whether the index key alone decides the match."""


class SubscriptionIndex:
    """All subscriptions, grouped by filter and indexed by the job, batch or task that the filter names."""

    def __init__(self, limit: int, errors: ErrorLog) -> None:
        """Buffer up to ``limit`` events for each subscription."""
        self._errors = errors
        self.delivered = self.dropped = self.lagged = 0
        self._limit = limit
        self._groups: dict[EventFilter, _Group] = {}
        self._index: dict[str, list[_Group]] = {}
        self._is_drained = False

    def __len__(self) -> int:
        """Return the number of subscriptions."""
        return sum(len(group.members) for group in self._groups.values())

    @property
    def is_empty(self) -> bool:
        """Whether there are no subscriptions."""
        return not self._groups

    def reopen(self) -> None:
        """Accept subscriptions again after :meth:`drain`."""
        self._is_drained = False

    def drain(self) -> None:
        """Close all subscriptions, later ones too: their readers take what is pending and see ``closing``."""
        self._is_drained = True
        for group in self._groups.values():
            for subscription in group.members:
                subscription.closing = True
                subscription.wake()

    def clear(self) -> None:
        """Drop all subscriptions."""
        self._groups.clear()
        self._index.clear()

    def subscribe(self, wanted: EventFilter) -> Subscription:
        """Subscribe to the events that ``wanted`` matches, from now on."""
        group = self._groups.get(wanted)
        if group is None:
            group = self._groups[wanted] = _Group(wanted)
            for key in self._keys(wanted):
                self._index.setdefault(key, []).append(group)
        subscription = Subscription(self, group, self._limit)
        subscription.closing = self._is_drained
        group.members.add(subscription)
        return subscription

    def remove(self, group: _Group, subscription: Subscription) -> None:
        """Remove a closed subscription."""
        group.members.discard(subscription)
        if group.members or self._groups.get(group.wanted) is not group:
            return
        del self._groups[group.wanted]
        for key in self._keys(group.wanted):
            self._index[key].remove(group)
            if not self._index[key]:
                del self._index[key]

    def dispatch(self, events: Sequence[Event]) -> None:
        """Push ``events`` to the subscriptions that match them."""
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
            self._push_pending(group)

    def _interested(self, event: Event) -> Iterable[_Group]:
        """Return the groups indexed under the event's job, batch or task; each group at most once."""
        get = self._index.get
        return (
            *get(event.job_id, ()),
            *get("batch " + event.batch, ()),
            *get("task " + event.task, ()),
            *get(_REST, ()),
        )

    def _push_pending(self, group: _Group) -> None:
        pending, group.pending = group.pending, []
        for chunk in chunks(pending):
            self.delivered += chunk.many * len(group.members)
            for subscription in tuple(group.members):
                try:
                    dropped = subscription.push(chunk)
                except RuntimeError as error:  # the event loop of its reader was closed
                    self._errors.add("bus", error, "a subscriber cannot be woken and is dropped", is_ours=True)
                    self.remove(group, subscription)
                    continue
                if dropped:
                    self.delivered -= min(dropped, chunk.many)
                    self.dropped += dropped

    @staticmethod
    def _keys(wanted: EventFilter) -> Iterable[str]:
        """Return the index keys of a filter: its narrowest dimension, or the key for all other filters."""
        if wanted.jobs:
            return wanted.jobs
        batches = [f"batch {batch}" for batch in wanted.batches]
        return batches or [f"task {task}" for task in wanted.tasks] or [_REST]
