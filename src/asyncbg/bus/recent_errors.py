"""The exceptions of the jobs that failed last in this process, for whoever waits for their result."""

from collections import OrderedDict
from collections.abc import Iterable

from asyncbg.core.event import Event, EventType

_MOST = 100
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
        while len(self._errors) > _MOST or next(iter(self._errors.values())).at_ms < now_ms - _LONGEST_MS:
            self._errors.popitem(last=False)
