"""The relay: publishes committed events on the bus of this process and wakes its worker."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from asyncbg.bus import EventBus
from asyncbg.core.event import FINAL_EVENTS, Event, EventFilter, EventType
from asyncbg.engine.runner import Runner
from asyncbg.store.base import Backend

CommitListener: TypeAlias = Callable[[Sequence[Event]], None]

_PAGE = 1000
_WAKING = frozenset({EventType.QUEUED.value, EventType.SCHEDULED.value, EventType.RETRYING.value})
_ENDS_ATTEMPT = FINAL_EVENTS | {EventType.RETRYING}


class EventRelay:
    """Publishes each event once and in log order, whichever process committed it.

    Progress is not in the log. That of this process's jobs is published after its commit; that of other processes is
    read from the jobs, only while this process has subscribers for it.
    """

    def __init__(
        self, backend: Backend, bus: EventBus, runner: Runner, *, listeners: Sequence[CommitListener] = ()
    ) -> None:
        """Call ``listeners`` with the events of each commit of this process, before they are published."""
        self._backend = backend
        self._bus = bus
        self.listeners = list(listeners)
        self._runner = runner
        self._last_report: int | None = None
        self._errors: dict[int, BaseException] = {}
        """Exceptions of own commits that are published from the log, by ``seq``: the log does not store them."""

    def committed(self, events: Sequence[Event]) -> None:
        """Publish an own commit. If another process committed before it, :meth:`follow_log` publishes both."""
        for listen in self.listeners:
            listen(events)
        if events[0].seq == self._bus.last_seq + 1:
            self._bus.publish(events)
        else:
            self._errors |= {event.seq: event.error for event in events if event.error is not None}
        self._wake_for(events)

    def progressed(self, events: Sequence[Event]) -> None:
        """Publish the progress stored by an own commit."""
        self._bus.publish(events)

    async def follow_log(self) -> None:
        """Publish the commits of other processes and the progress of their jobs."""
        tail = await self._backend.tail(after_report=self._last_report if self._bus.wants_progress else None)
        self._last_report = tail.last_report
        latest = {event.job_id: event for event in (*tail.running, *tail.ended)}
        while self._bus.last_seq < tail.last_seq:
            events, reached = await self._backend.events(
                after_seq=self._bus.last_seq, wanted=EventFilter(), limit=_PAGE, up_to_seq=tail.last_seq
            )
            fresh = [
                event._replace(error=self._errors.pop(event.seq, None))
                for event in events
                if event.seq > self._bus.last_seq
            ]
            self._bus.publish(list(_with_progress(fresh, latest)))
            self._bus.last_seq = max(self._bus.last_seq, reached)
            self._wake_for(fresh)
        self._bus.publish([event for event in tail.running if event.job_id in latest])

    def _wake_for(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.type in _WAKING:
                self._runner.wake()
                return


def _with_progress(stored: Iterable[Event], latest: dict[str, Event]) -> Iterator[Event]:
    """Yield stored events, each final event of an attempt preceded by its last progress, taken out of ``latest``."""
    for event in stored:
        if event.type in _ENDS_ATTEMPT and event.job_id in latest and latest[event.job_id].attempt == event.attempt:
            yield latest.pop(event.job_id)
        yield event
