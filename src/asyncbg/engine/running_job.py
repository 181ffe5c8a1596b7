"""A running job: its lease, its asyncio task and its timer, and the outcome to settle."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from asyncbg.core.job import Cancelled, Done, Failed, Lease, Outcome, Released, Retry
from asyncbg.engine.context import CurrentJob
from asyncbg.engine.task import TaskDefinition


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job in a slot of the worker. ``cancelled_as`` is the outcome to settle if it was cancelled."""

    lease: Lease
    job: CurrentJob
    definition: TaskDefinition
    task: asyncio.Task[None] = field(init=False)
    cancelled_as: Outcome | None = None
    is_reported: bool = False
    has_ended: bool = False
    _timer: asyncio.TimerHandle | None = None

    @property
    def is_abandoned_when_late(self) -> bool:
        """Whether it is a thread that timed out: the thread runs on, but its job is settled without it."""
        return not self.definition.is_async and isinstance(self.cancelled_as, Retry | Failed)

    def outcome(self, ended: Outcome) -> Outcome:
        """Return the outcome to settle. A cancelled attempt succeeds only if it returned a value regardless."""
        if self.cancelled_as is None:
            return ended
        if not isinstance(ended, Done) or self.is_abandoned_when_late:
            return self.cancelled_as
        obeyed = not self.definition.is_async and self.job.cancelled.was_checked
        return self.cancelled_as if obeyed else ended

    def cancel(self, outcome: Outcome) -> None:
        """Cancel the asyncio task, to be settled as ``outcome``."""
        self.cancelled_as = outcome
        self.job.cancelled.set(_reason(outcome))
        self.task.cancel()

    def call_later(self, delay_s: float, then: "Callable[[RunningJob], None]") -> None:
        """Set the job's only timer: first for its timeout, after cancellation for its clean-up."""
        self.stop_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, then, self)

    def stop_timer(self) -> None:
        """Cancel the timer, if it is set."""
        if self._timer is not None:
            self._timer.cancel()


def _reason(outcome: Outcome) -> str:
    """Return why a job is cancelled."""
    match outcome:
        case Cancelled(reason) | Released(reason):
            return reason
        case Failed(error) | Retry(error, _):
            return error.message
        case Done():
            return ""
        case _:
            assert_never(outcome)
