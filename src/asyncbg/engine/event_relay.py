"""The relay: what a transaction has committed reaches this process's bus, and its worker."""

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
    """Publishes each event once and in the order of the log, whichever process committed it.

    Progress is not in the log: that of jobs that run here comes with the commit that keeps it, that of others is read
    from the jobs, only while somebody here wants progress.
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
        """Of our own commits that the tail of the log is to publish: what is read from there has none."""

    def committed(self, events: Sequence[Event]) -> None:
        """Publish our own commit; where another process committed in between, let the tail tell both in order."""
        for listen in self.listeners:
            listen(events)
        if events[0].seq == self._bus.last_seq + 1:
            self._bus.publish(events)
        else:
            self._errors |= {event.seq: event.error for event in events if event.error is not None}
        self._wake_for(events)

    def progressed(self, events: Sequence[Event]) -> None:
        """Publish the progress that our own commit has kept."""
        self._bus.publish(events)

    async def follow_log(self) -> None:
        """Publish what other processes have committed by now, and the progress their jobs have made."""
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
    """Stored events, each end of an attempt after the attempt's last progress, which is taken out of ``latest``."""
    for event in stored:
        if event.type in _ENDS_ATTEMPT and event.job_id in latest and latest[event.job_id].attempt == event.attempt:
            yield latest.pop(event.job_id)
        yield event
