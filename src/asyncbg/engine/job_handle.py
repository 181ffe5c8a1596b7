"""The handle on one accepted job, as ``enqueue`` and ``add_task`` return it."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

from asyncbg.core.event import Event
from asyncbg.core.job import Attempt, JobState
from asyncbg.engine.job_control import JobControl
from asyncbg.errors import JobCancelledError, JobFailedError, JobTimeoutError
from asyncbg.privacy.encryption import require_readable


class Job:
    """A handle on one accepted job. ``state`` is as of the last look; :meth:`refresh` looks again."""

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
        """Made when a job is accepted. ``created`` is False where an idempotency key matched an earlier job."""
        self._control = control
        self.id = job_id
        self.task = task
        self.state = state
        self.batch = batch
        self.owner = owner
        self.created = created

    def __repr__(self) -> str:
        """The id, the task and the state; never arguments."""
        return f"<Job {self.id} {self.task} {self.state}>"

    async def refresh(self) -> Self:
        """Look at the store again. Raises JobNotFoundError where the job was purged."""
        self.state = (await self._control.get(self.id)).state
        return self

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it (as JSON gives it back).

        Raises JobFailedError (its ``__cause__`` is what the task raised, where it ran in this process, else a
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
        """The latest attempts, oldest first, each with its error and traceback where it failed."""
        return await self._control.attempts(self.id)

    def events(self) -> AsyncIterator[Event]:
        """The job's events from the first one to its final one, progress included."""
        return self._control.watch(self.id)

    async def cancel(self, reason: str = "") -> JobState:
        """Cancel the job. Raises JobStateError where it is final."""
        self.state = await self._control.cancel(self.id, reason)
        return self.state

    async def retry(self) -> JobState:
        """Run the final job again. Raises JobStateError where it is not final."""
        self.state = await self._control.retry(self.id)
        return self.state
