"""The relay: what a transaction has committed reaches this process's bus, and its worker."""

from collections.abc import Iterable, Sequence

from asyncbg.backends.base import Backend
from asyncbg.bus import EventBus
from asyncbg.event import Event, EventFilter, EventType
from asyncbg.runner.backlog import Backlog
from asyncbg.runner.runner import Runner

_PAGE = 1000
_WAKING = frozenset({EventType.QUEUED.value, EventType.SCHEDULED.value, EventType.RETRYING.value})


class EventRelay:
    """Publishes each event once and in the order of the log, whichever process committed it."""

    def __init__(self, backend: Backend, bus: EventBus, backlog: Backlog, runner: Runner) -> None:
        """Made by the engine."""
        self._backend = backend
        self._bus = bus
        self._backlog = backlog
        self._runner = runner

    def committed(self, events: Sequence[Event]) -> None:
        """Publish our own commit; where another process committed in between, let the tail tell both in order."""
        if events[0].seq == self._bus.last_seq + 1:
            self._bus.publish(events)
        self._backlog.follow(events)
        self._wake_for(events)

    async def follow_log(self) -> None:
        """Publish what other processes have committed by now."""
        while True:
            position = await self._backend.position()
            if position.last_seq <= self._bus.last_seq:
                return
            events, reached = await self._backend.events(
                after_seq=self._bus.last_seq, wanted=EventFilter(), limit=_PAGE, up_to_seq=position.last_seq
            )
            fresh = [event for event in events if event.seq > self._bus.last_seq]
            self._bus.publish(fresh)
            self._bus.last_seq = max(self._bus.last_seq, reached)
            self._wake_for(fresh)

    def _wake_for(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.type in _WAKING:
                self._runner.wake()
                return
