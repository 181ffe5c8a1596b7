"""Progress: the ``Progress`` parameter of tasks, and the reporter that coalesces, stores and publishes it."""

import asyncio
import copy
import json
import logging
from collections.abc import AsyncIterable, AsyncIterator
from functools import cache
from typing import SupportsFloat, TypeVar

from asyncbg.core.error_log import ends_task
from asyncbg.core.job import ProgressValue
from asyncbg.engine.context import UNKNOWN_THREAD, CurrentJob, find_current_job, is_task_side
from asyncbg.errors import LeaseLostError
from asyncbg.store.base import Backend
from asyncbg.store.sqlite.database import Guard

T = TypeVar("T")
logger = logging.getLogger("asyncbg")


class ProgressReporter:
    """Stores at most ``per_s`` reports a second for each job: the first at once, then the latest of each period.

    The next group commit stores the value on the job and then publishes it, so an attempt that has lost its lease
    publishes nothing.
    """

    def __init__(self, backend: Backend, *, per_s: float) -> None:
        self._backend = backend
        self._period_s = 1 / per_s
        self._writes: set[asyncio.Task[None]] = set()

    def progress_changed(self, job: CurrentJob) -> None:
        """Store the job's progress now, or at the end of its period."""
        loop = asyncio.get_running_loop()
        due_s = job.reported_s + self._period_s
        if loop.time() >= due_s:
            self._pass_on(job)
        else:
            loop.call_at(due_s, self._pass_on, job)

    def take(self, job: CurrentJob) -> str | None:
        """Return the job's last progress as JSON, or None; later reports of the attempt are dropped."""
        job.changed, job.reported_s = True, float("inf")  # nothing is stored after the attempt
        progress = job.redacted_progress
        return None if progress is None else _as_json(progress)

    async def publish(self, job: CurrentJob, event_type: str, data: str) -> None:
        """Store and publish a custom event of the task. Raise LeaseLostError if the lease was lost."""
        if not await self._backend.record(job.lease, event_type, data):
            raise LeaseLostError(job.id)

    def guard(self, job: CurrentJob) -> Guard:
        """Return the lease check for a transaction of the task."""
        return self._backend.guard(job.lease)

    async def holds(self, job: CurrentJob) -> bool:
        """Whether the job's attempt still has its lease."""
        return await self._backend.holds(job.lease)

    async def close(self) -> None:
        """Wait for pending writes."""
        if self._writes:
            await asyncio.wait(self._writes)

    def _pass_on(self, job: CurrentJob) -> None:
        progress = job.redacted_progress
        if progress is None or not job.changed or job.reported_s == float("inf"):
            return
        job.changed = False
        job.reported_s = asyncio.get_running_loop().time()
        task = asyncio.create_task(self._keep(job, _as_json(progress)), name=f"asyncbg-progress-{job.id}")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _keep(self, job: CurrentJob, progress: str) -> None:
        try:
            await self._backend.report(job.lease, progress)
        except BaseException as error:
            if ends_task(error):
                raise
            logger.warning("the progress of job %s is not stored: %s", job.id, type(error).__name__)


def _as_json(progress: ProgressValue) -> str:
    """Return progress as JSON text that can be stored and sent, whatever values the task reported."""
    text = json.dumps(progress.as_dict(), ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace").decode()


def _plain(value: object) -> float | str:
    """Return a number of another type (Decimal, numpy) as a float, anything else as text."""
    return float(value) if isinstance(value, SupportsFloat) else str(value)


class Progress:
    """Reports the progress of a task. Declare it as a parameter: ``progress: Progress = Progress()``.

    Reports are coalesced: call it as often as you like. The parameter is bound to its job in every thread. Outside a
    job, as in a task that is awaited inline or called in a unit test, reports are dropped.
    """

    _job: CurrentJob | None = None
    _is_bound = False

    def _reported_on(self) -> CurrentJob | None:
        """Return the job this is bound to, else the running job."""
        if self._is_bound:
            return self._job
        job = find_current_job()
        if job is None and not is_task_side():
            _warn_of_unknown_thread()
        return job

    def set(
        self, current: float, total: float | None = None, message: str | None = None, unit: str | None = None
    ) -> None:
        """Set the progress; omitted values are kept."""
        job = self._reported_on()
        if job is not None:
            job.report(current, total, message, unit)

    def advance(self, n: float = 1) -> None:
        """Add ``n`` to the current value."""
        job = self._reported_on()
        if job is not None:
            job.advance(n)

    async def track(self, items: AsyncIterable[T], total: float | None = None) -> AsyncIterator[T]:
        """Iterate over ``items`` and count each item after the loop's body has processed it."""
        self.set(0, total=total)
        async for item in items:
            yield item
            self.advance()


def bound_progress(progress: Progress) -> Progress:
    """Return a copy bound to the running job, or to none, for a task or a provider."""
    bound = copy.copy(progress)
    bound._job, bound._is_bound = find_current_job(), True
    return bound


@cache
def _warn_of_unknown_thread() -> None:
    """Log once that progress is dropped."""
    logger.warning("progress was reported outside a job and is dropped: %s", UNKNOWN_THREAD)
