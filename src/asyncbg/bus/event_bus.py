"""The bus itself: one publisher, three kinds of consumers.

``publish`` never blocks and never raises because of a consumer. Every queue is bounded and says what it drops:

* a subscription that overflows with stored events is ``lagging``: its reader goes back to the log, nothing is lost;
* progress is kept per job as its latest value;
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
    """Tells the events of this process's commits to whoever wants them. All methods belong to the event loop."""

    def __init__(self, *, buffer: int = 1000, errors: ErrorLog | None = None) -> None:
        """Hold up to ``buffer`` events for each consumer."""
        self.epoch = ""
        """The name of the database; a part of every event's id on the wire."""
        self.last_seq = 0
        """The position of the log up to which everything was published."""
        self.generation = 0
        """How often the engine was started."""
        self.publish_count = 0
        """How often something was published, whatever number of events at once."""
        self._published = 0
        errors = errors or ErrorLog()
        self.errors = RecentErrors()
        """What the jobs that failed last have raised."""
        self._waits = FinalEventWaiters(errors)
        self._subscriptions = SubscriptionIndex(buffer, errors)
        self._handlers = Handlers(buffer, errors)

    def start(self, *, epoch: str, last_seq: int) -> None:
        """Begin a generation of the engine: the database is ``epoch``, its log is written up to ``last_seq``."""
        self.epoch = epoch
        self.last_seq = last_seq
        self.generation += 1
        self._subscriptions.reopen()

    def publish(self, events: Sequence[Event]) -> None:
        """Tell ``events``: stored ones in the order of ``seq``, or progress (``seq`` 0). Returns at once."""
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
        """Whether anybody here may want the progress of jobs."""
        return not self._subscriptions.is_empty or self._handlers.wants(EventType.PROGRESS.value)

    def subscribe(self, wanted: EventFilter) -> Subscription:
        """Collect from now on what ``wanted`` matches."""
        return self._subscriptions.subscribe(wanted)

    def on(self, event_type: str, handler: Handler, *, task: str | None = None) -> None:
        """Call ``handler`` with every event of ``event_type`` (``"job.failed"``, ``"job.*"``, ``"*"``) and ``task``.

        Each handler has its own queue and is called with one event at a time, in order, while ``run_handlers`` runs.
        A plain function is called in a worker thread. What it raises is logged and counted.
        """
        self._handlers.add(event_type, handler, task=task)

    def expect_final(self, job_id: str) -> FinalEventWaiter:
        """Register for the job's final event; use it as a context, so that nothing falls between look and wait."""
        return self._waits.expect(job_id)

    async def run_handlers(self) -> None:
        """Feed the handlers until cancelled."""
        await self._handlers.run()

    async def join_handlers(self, timeout_s: float) -> bool:
        """Wait until every handler has dealt with what it was given. False: the time was over first."""
        return await self._handlers.join(timeout_s)

    @property
    def handler_restarts(self) -> int:
        """How often the loop of a handler had to be started again."""
        return self._handlers.supervisor.restarts.total()

    @property
    def is_handler_down(self) -> bool:
        """Whether the loop of a handler has ended and waits for its next start."""
        return bool(self._handlers.supervisor.down)

    def abandon(self) -> None:
        """Forget all who wait or subscribe: the event loop that they are in was closed."""
        self._waits.clear()
        self._subscriptions.clear()
        self._handlers.abandon()

    def drain(self) -> None:
        """End all subscriptions, later ones too: their readers take what is left and see ``closing``."""
        self._subscriptions.drain()

    def statistics(self) -> BusStatistics:
        """What went through."""
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
    """At most a hundred, for a minute: an exception keeps alive whatever its frames hold."""

    def __init__(self) -> None:
        """Start empty."""
        self._errors: OrderedDict[str, Event] = OrderedDict()

    def keep(self, events: Iterable[Event]) -> None:
        """Take the exceptions of final failures."""
        for event in events:
            if event.error is not None and event.type == EventType.FAILED:
                self._errors[event.job_id] = event
                self._drop_old(event.at_ms)

    def find(self, job_id: str, attempt: int) -> BaseException | None:
        """What this attempt of a job raised, or None."""
        event = self._errors.get(job_id)
        return event.error if event is not None and event.attempt == attempt else None

    def _drop_old(self, now_ms: int) -> None:
        while len(self._errors) > _MAX or next(iter(self._errors.values())).at_ms < now_ms - _LONGEST_MS:
            self._errors.popitem(last=False)
