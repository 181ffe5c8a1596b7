"""The job handle that ``enqueue`` and ``add_task`` return."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

from asyncbg.core.event import Event
from asyncbg.core.job import Attempt, JobState
from asyncbg.engine.job_control import JobControl
from asyncbg.errors import JobCancelledError, JobFailedError, JobTimeoutError
from asyncbg.privacy.encryption import require_readable


class Job:
    """A handle on one job. ``state`` is as of the last read; :meth:`refresh` reads it again."""

    __slots__ = ("_control", "batch", "created", "id", "owner", "state", "task")

    def __init__(
        self,
        control: JobControl,
        job_id: str,
        *,
        task: str,
        state: JobState,
        batch: str,
        owner: str,
        created: bool = True,
    ) -> None:
        """``created`` is False if an idempotency key matched an earlier job."""
        self._control = control
        self.id = job_id
        self.task = task
        self.state = state
        self.batch = batch
        self.owner = owner
        self.created = created

    def __repr__(self) -> str:
        """Return the id, the task and the state; no arguments."""
        return f"<Job {self.id} {self.task} {self.state}>"

    async def refresh(self) -> Self:
        """Read the state from the store. Raise JobNotFoundError if the job was purged."""
        self.state = (await self._control.get(self.id)).state
        return self

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it, decoded from JSON.

        Raise JobFailedError (its ``__cause__`` is the task's exception if it ran in this process, else a
        TracebackError), JobCancelledError, UnreadableError, or JobTimeoutError after ``timeout`` seconds.
        """
        record = await self._control.wait(self.id, timeout, through_shutdown=True)
        self.state = record.state
        match record.state:
            case JobState.SUCCEEDED:
                require_readable(record.result or "null")
                return json.loads(record.result or "null")
            case JobState.FAILED if record.error is not None:
                cause = await self._control.cause_of(record)
                raise JobFailedError(self.id, record.error.type, record.error.message) from cause
            case JobState.CANCELLED:
                raise JobCancelledError(self.id, record.cancel_reason or "")
            case _:
                raise JobTimeoutError(self.id, timeout or 0)

    async def attempts(self) -> Sequence[Attempt]:
        """Return the latest attempts, oldest first, with the error and traceback of those that failed."""
        return await self._control.attempts(self.id)

    def events(self) -> AsyncIterator[Event]:
        """Iterate over the job's events from the first to the final one, progress included."""
        return self._control.watch(self.id)

    async def cancel(self, reason: str = "") -> JobState:
        """Cancel the job. Raise JobStateError if it is final."""
        self.state = await self._control.cancel(self.id, reason)
        return self.state

    async def retry(self) -> JobState:
        """Run the final job again. Raise JobStateError if it is not final."""
        self.state = await self._control.retry(self.id)
        return self.state
