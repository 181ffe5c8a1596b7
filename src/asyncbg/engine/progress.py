"""The progress pump: takes a running job's reports, coalesces them and has the latest kept, which publishes it."""

import asyncio
import json
import logging
from typing import SupportsFloat

from asyncbg.core.error_log import ends_task
from asyncbg.core.job import ProgressValue
from asyncbg.engine.context import CurrentJob
from asyncbg.errors import LeaseLostError
from asyncbg.store.base import Backend
from asyncbg.store.sqlite.database import Guard

logger = logging.getLogger("asyncbg")


class ProgressPump:
    """Passes on at most ``per_s`` reports a second for each job: the first at once, the latest of each period after.

    The value is kept on the job by the next group commit, which tells the bus of it: so nothing is published of an
    attempt that has lost its lease.
    """

    def __init__(self, backend: Backend, *, per_s: float) -> None:
        """Report to ``backend``."""
        self._backend = backend
        self._period_s = 1 / per_s
        self._writes: set[asyncio.Task[None]] = set()

    def progress_changed(self, job: CurrentJob) -> None:
        """Pass the job's progress on now, or when its period is over."""
        loop = asyncio.get_running_loop()
        due_s = job.reported_s + self._period_s
        if loop.time() >= due_s:
            self._pass_on(job)
        else:
            loop.call_at(due_s, self._pass_on, job)

    def take(self, job: CurrentJob) -> str | None:
        """The job's last progress as JSON if it ever reported; the attempt is over."""
        job.changed, job.reported_s = True, float("inf")  # nothing is passed on after the end
        progress = job.shown_progress
        return None if progress is None else _as_json(progress)

    async def publish(self, job: CurrentJob, event_type: str, data: str) -> None:
        """Store and publish an event of the task's own. Raises LeaseLostError where the lease has lapsed."""
        if not await self._backend.record(job.lease, event_type, data):
            raise LeaseLostError(job.id)

    def guard(self, job: CurrentJob) -> Guard:
        """What a transaction of the task's own asks first."""
        return self._backend.guard(job.lease)

    async def holds(self, job: CurrentJob) -> bool:
        """Whether the job's attempt still has its lease."""
        return await self._backend.holds(job.lease)

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writes:
            await asyncio.wait(self._writes)

    def _pass_on(self, job: CurrentJob) -> None:
        progress = job.shown_progress
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
            logger.warning("the progress of job %s is not kept: %s", job.id, type(error).__name__)


def _as_json(progress: ProgressValue) -> str:
    """Progress as JSON text that can be stored and sent, whatever a task gave for a number or a message."""
    text = json.dumps(progress.as_dict(), ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace").decode()


def _plain(value: object) -> float | str:
    """A number of another kind (Decimal, numpy's) as a float, anything else as text."""
    return float(value) if isinstance(value, SupportsFloat) else str(value)
