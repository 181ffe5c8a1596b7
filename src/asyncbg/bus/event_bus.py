"""The event bus: one publisher and three kinds of consumers.

``publish`` never blocks and never raises because of a consumer. Every queue is bounded and counts what it drops:

* a subscription that overflows with stored events is ``lagging``: its reader continues from the log: nothing is lost;
* of each job only the latest progress is kept;
* a handler that is too slow loses its oldest events, which are counted.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asyncbg.bus.handler import Handler, Handlers
from asyncbg.bus.subscription import Subscription, SubscriptionIndex
from asyncbg.bus.waiter import FinalEventWaiter, FinalEventWaiters
from asyncbg.core.error_log import ErrorLog
from asyncbg.core.event import Event, EventFilter, EventType


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


class EventBus:
    """Publishes the events committed by this process to its consumers. Call all methods on the event loop."""

    def __init__(self, *, buffer: int = 1000, errors: ErrorLog | None = None) -> None:
        """Buffer up to ``buffer`` events for each consumer."""
        self.epoch = ""
        """The identifier of the database; part of every event id."""
        self.last_seq = 0
        """The log position up to which all events were published."""
        self.generation = 0
        """Number of times the engine was started."""
        self.publish_count = 0
        """Number of :meth:`publish` calls that had events."""
        self._published = 0
        errors = errors or ErrorLog()
        self.errors = RecentErrors()
        """The exceptions raised by the jobs that failed most recently."""
        self._waits = FinalEventWaiters(errors)
        self._subscriptions = SubscriptionIndex(buffer, errors)
        self._handlers = Handlers(buffer, errors)

    def start(self, *, epoch: str, last_seq: int) -> None:
        """Start publishing for the database ``epoch``, whose log ends at ``last_seq``."""
        self.epoch = epoch
        self.last_seq = last_seq
        self.generation += 1
        self._subscriptions.reopen()

    def publish(self, events: Sequence[Event]) -> None:
        """Publish stored events in the order of ``seq``, or progress (``seq`` 0). Does not block."""
        if not events:
            return
        self._published += len(events)
        self.publish_count += 1
        last_seq = events[-1].seq or max(event.seq for event in events)
        if last_seq > self.last_seq:
            self.last_seq = last_seq
        self.errors.keep(events)
        self._waits.dispatch(events)
        self._subscriptions.dispatch(events)
        self._handlers.dispatch(events)

    @property
    def wants_progress(self) -> bool:
        """Whether any consumer of this process may receive progress events."""
        return not self._subscriptions.is_empty or self._handlers.wants(EventType.PROGRESS.value)

    def subscribe(self, wanted: EventFilter) -> Subscription:
        """Subscribe to the events that ``wanted`` matches, from now on."""
        return self._subscriptions.subscribe(wanted)

    def on(self, event_type: str, handler: Handler, *, task: str | None = None) -> None:
        """Call ``handler`` with every event of ``event_type`` (``"job.failed"``, ``"job.*"``, ``"*"``) and ``task``.

        Each handler has its own queue and is called with one event at a time, in order, while ``run_handlers`` runs.
        A plain function is called in a worker thread. What it raises is logged and counted.
        """
        self._handlers.add(event_type, handler, task=task)

    def expect_final(self, job_id: str) -> FinalEventWaiter:
        """Register a waiter for the job's final event. Use it as a context manager, and read the job's state inside."""
        return self._waits.expect(job_id)

    async def run_handlers(self) -> None:
        """Run the handlers until cancelled."""
        await self._handlers.run()

    async def join_handlers(self, timeout_s: float) -> bool:
        """Wait until every handler has processed its queue. Return False on timeout."""
        return await self._handlers.join(timeout_s)

    @property
    def handler_restarts(self) -> int:
        """Number of times that the loop of a handler was restarted."""
        return self._handlers.supervisor.restarts.total()

    @property
    def is_handler_down(self) -> bool:
        """Whether the loop of a handler has ended and waits for its restart."""
        return bool(self._handlers.supervisor.down)

    def abandon(self) -> None:
        """Drop all waiters and subscriptions: their event loop was closed."""
        self._waits.clear()
        self._subscriptions.clear()
        self._handlers.abandon()

    def drain(self) -> None:
        """Close all subscriptions, later ones too: their readers take what is pending and see ``closing``."""
        self._subscriptions.drain()

    def statistics(self) -> BusStatistics:
        """Return the counters."""
        return BusStatistics(
            published=self._published,
            delivered=self._subscriptions.delivered,
            dropped=self._subscriptions.dropped + self._handlers.dropped,
            lagged=self._subscriptions.lagged,
            subscribers=len(self._subscriptions),
            handlers=len(self._handlers),
            handler_errors=self._handlers.errors,
        )


_MAX = 100
_LONGEST_MS = 60_000


class RecentErrors:
    """The exceptions of at most 100 failed jobs, each for a minute, since each keeps its frames alive."""

    def __init__(self) -> None:
        self._errors: OrderedDict[str, Event] = OrderedDict()

    def keep(self, events: Iterable[Event]) -> None:
        """Store the exceptions of final failures."""
        for event in events:
            if event.error is not None and event.type == EventType.FAILED:
                self._errors[event.job_id] = event
                self._drop_old(event.at_ms)

    def find(self, job_id: str, attempt: int) -> BaseException | None:
        """Return the exception raised by this attempt of a job, or None."""
        event = self._errors.get(job_id)
        return event.error if event is not None and event.attempt == attempt else None

    def _drop_old(self, now_ms: int) -> None:
        while len(self._errors) > _MAX or next(iter(self._errors.values())).at_ms < now_ms - _LONGEST_MS:
            self._errors.popitem(last=False)
