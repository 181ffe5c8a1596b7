"""The worker: claims jobs for its free slots, runs each in an asyncio task, and settles the outcomes."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from asyncbg.core.clock import Clock
from asyncbg.core.error_log import ErrorLog, ends_task
from asyncbg.core.event import EventType, dump
from asyncbg.core.job import Cancelled, Failed, JobFailure, Lease, Outcome, Released
from asyncbg.engine.context import CurrentJob
from asyncbg.engine.executor import Executor
from asyncbg.engine.failure import describe
from asyncbg.engine.progress import ProgressReporter
from asyncbg.engine.registry import NO_SUCH_TASK, InMemoryJobs, Registry
from asyncbg.engine.running_job import RunningJob
from asyncbg.engine.settler import Settler
from asyncbg.errors import DatabaseError, OutageError
from asyncbg.settings import RunnerSettings
from asyncbg.store.base import Backend, Settlement

logger = logging.getLogger("asyncbg")

_TASK_NAME = "asyncbg-job-"
_LONGEST_WAIT_S = 1.0
_CLAIM_PAUSE_S = 0.5
_QUARANTINE_MS = 60_000
_LONGEST_CLAIM_S = 10.0
_LONGEST_SETTLE_S = 10.0
_FUNCTION_GONE = JobFailure(
    type="NotDurableError", message="its function is no longer in memory; pass a module-level function"
)

_CANCELLED_ITSELF = Cancelled("the task cancelled itself")


class Worker:
    """Runs up to ``concurrency`` jobs at once, each in its own asyncio task with its own context.

    It uses plain asyncio tasks, not an anyio task group: a job sees one cancellation, as asyncio code expects,
    and starting a task costs a third.
    """

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        settings: RunnerSettings,
        *,
        executor: Executor,
        reporter: ProgressReporter,
        in_memory: InMemoryJobs,
        clock: Clock,
        errors: ErrorLog | None = None,
        is_loop_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._backend = backend
        self._registry = registry
        self._settings = settings
        self._executor = executor
        self._reporter = reporter
        self._in_memory = in_memory
        self._clock = clock
        self._errors = errors or ErrorLog()
        self._is_loop_ending = is_loop_ending
        self._next_quarantine_ms = 0
        self._settler = Settler(
            backend, in_memory, is_stopping=lambda: self._stopping, quarantine=self._quarantine, errors=self._errors
        )
        self._wake = asyncio.Event()
        self._wake.set()  # jobs of an earlier process may be waiting
        self._claim_done = asyncio.Event()
        self._claim_done.set()
        self._running: dict[str, RunningJob] = {}
        self._skipped: set[str] = set()
        self._records: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._deadline: asyncio.TimerHandle | None = None
        self._is_full = False

    @property
    def active(self) -> int:
        """Number of running jobs."""
        return len(self._running)

    @property
    def job_ids(self) -> set[str]:
        """The ids of the running jobs."""
        return set(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether no job is running and no outcome waits to be settled."""
        return not self._running and self._settler.task is None

    def job(self, job_id: str) -> CurrentJob | None:
        """Return a job that runs in this worker, or None."""
        running = self._running.get(job_id)
        return running.job if running else None

    def lease_of(self, asyncio_task: str) -> Lease | None:
        """Return the lease of the job that the asyncio task of this name runs, or None."""
        running = self._running.get(asyncio_task.removeprefix(_TASK_NAME))
        return running.lease if running else None

    def wake(self) -> None:
        """Claim now: there may be jobs."""
        self._wake.set()

    async def run(self) -> None:
        """Claim and start jobs until :meth:`stop`."""
        next_due_ms: int | None = None
        while not self._stopping:
            await self._wait(next_due_ms)
            try:
                next_due_ms = await self.claim()
                self._errors.recovered("claim")
            except BaseException as error:
                if ends_task(error):
                    raise
                if not isinstance(error, OutageError):  # the database logs outages itself
                    self._errors.add_once("claim", error, "cannot claim jobs; retrying", is_ours=True)
                    await self._quarantine()
                await asyncio.sleep(_CLAIM_PAUSE_S)

    async def _quarantine(self) -> None:
        """Fail the jobs whose rows cannot be read, so that the others can be claimed."""
        if self._clock.monotonic_ms() < self._next_quarantine_ms:
            return
        self._next_quarantine_ms = self._clock.monotonic_ms() + _QUARANTINE_MS
        try:
            for job_id in await self._backend.quarantine():
                logger.error("job %s failed: its row holds a value of another type than its column", job_id)
        except DatabaseError as error:
            logger.error("cannot fail the jobs whose rows cannot be read: %s", error)

    async def run_ready(self) -> bool:
        """Claim and run jobs until none is ready or running. Return whether any job ran.

        For manual mode, instead of :meth:`run`.
        """
        has_run = False
        while True:
            self._wake.clear()
            await self.claim()
            if self.is_idle and not self._wake.is_set():
                return has_run
            has_run = True
            await self._wait_for_change()
            self.settle_unbegun()

    async def claim(self) -> int | None:
        """Claim jobs for the free slots. Return when the next scheduled job is due, in milliseconds."""
        self._claim_done.clear()
        try:
            return await self._fill_slots()
        finally:
            self._claim_done.set()

    async def _fill_slots(self) -> int | None:
        next_due_ms: int | None = None
        while not self._stopping:
            free = self._settings.concurrency - len(self._running)
            self._is_full = free <= 0
            if self._is_full:
                break
            claimed = await self._backend.claim(free, lease_s=self._settings.lease_s, skip=self._skipped)
            next_due_ms = claimed.next_due_ms
            for lease in claimed.leases:
                self._start_or_fail(lease)
            if len(claimed.leases) < free:
                break
        return next_due_ms

    async def _wait_for_change(self) -> None:
        """Wait until a job or a settlement ends, or the worker is woken."""
        settling = self._settler.task
        pending = {running.task for running in self._running.values()} | ({settling} if settling else set())
        woken = asyncio.create_task(self._wake.wait(), name="asyncbg-woken")
        try:
            await asyncio.wait([*pending, woken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    def abort(self) -> "list[asyncio.Task[None]]":
        """Drop all running jobs without settling them, as a killed process does.

        Return the asyncio tasks of the dropped coroutines, which are being cancelled.
        """
        self.stop_claiming()
        self._wake.set()
        dropped = list(self._running.values())
        for running in dropped:
            self._free_slot(running)
            running.job.cancelled.set("the worker is gone")
            running.task.cancel()
        self._settler.clear()
        return [running.task for running in dropped if running.definition.is_async]

    def stop_claiming(self) -> None:
        """Claim no more jobs. Safe in a signal handler."""
        self._stopping = True

    def begin_drain(self) -> None:
        """Claim no more jobs and start the grace period of those that run."""
        self.stop_claiming()
        self._wake.set()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(
                self._settings.shutdown_grace_s, self._release_running
            )

    async def stop(self) -> None:
        """Claim no more jobs, give running jobs the grace period, then cancel and release them."""
        self.begin_drain()
        with contextlib.suppress(TimeoutError):  # jobs claimed meanwhile are released at once
            async with asyncio.timeout(_LONGEST_CLAIM_S):
                await self._claim_done.wait()
        if self._running and self._deadline is not None:
            grace_s = max(0.0, self._deadline.when() - asyncio.get_running_loop().time())
            await asyncio.wait([running.task for running in self._running.values()], timeout=grace_s)
        self._release_running()
        if self._running:
            tasks = [running.task for running in self._running.values()]
            await asyncio.wait(tasks, timeout=self._settings.cancel_grace_s)
        await self._settle_unstopped()
        if self._settler.task is not None:
            await asyncio.wait([self._settler.task], timeout=_LONGEST_SETTLE_S)

    def _release_running(self) -> None:
        """Cancel the jobs that still run after the grace period; they are released and run again."""
        if self._deadline is not None:
            self._deadline.cancel()
        for running in list(self._running.values()):
            if running.cancelled_as is None:
                self._cancel_running(running, Released("the process shut down"))

    async def _settle_unstopped(self) -> None:
        """Settle the jobs that ignored cancellation, since the process is ending."""
        late = list(self._running.values())
        for running in late:
            self._report_ignored_cancel(running)
        if self._records:
            await asyncio.wait(self._records, timeout=_LONGEST_SETTLE_S)
        for running in late:
            self._abandon(running)

    def cancel(self, job_id: str, reason: str) -> bool:
        """Cancel a job if it runs in this worker. Return whether it does."""
        running = self._running.get(job_id)
        if running is None or running.cancelled_as is not None:
            return False
        self._cancel_running(running, Cancelled(reason))
        return True

    def stop_lapsed(self, job_ids: set[str]) -> None:
        """Cancel jobs whose lease was lost."""
        for job_id in job_ids:
            running = self._running.get(job_id)
            if running is not None and running.cancelled_as is None:
                logger.warning("job %s lost its lease and is cancelled", job_id)
                self._cancel_running(running, Released("the lease lapsed"))

    def recheck_skipped(self) -> None:
        """Look up unknown tasks again: their module may be loaded by now."""
        known = {name for name in self._skipped if self._registry.has(name)}
        if known:
            self._skipped -= known
            self.wake()

    async def _wait(self, next_due_ms: int | None) -> None:
        timeout_s = _LONGEST_WAIT_S
        if next_due_ms is not None:
            timeout_s = min(timeout_s, max(0.0, (next_due_ms - self._clock.now_ms()) / 1000))
        if not self._wake.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
        self._wake.clear()

    def _start_or_fail(self, lease: Lease) -> None:
        """Start a job. One that cannot be started fails with the error; the other jobs are not affected."""
        try:
            self._start(lease)
        except BaseException as error:  # noqa: BLE001 - a stored name may resolve to any object
            self._errors.add("start", error, "job %s (%s) cannot be started", lease.id, lease.task)
            self._settle(CurrentJob(lease, self._reporter, self._clock.now_ms), Failed(describe(error)))

    def _start(self, lease: Lease) -> None:
        kept = None if lease.durable else self._in_memory.get(lease.id)
        definition = kept[0] if kept else self._registry.find(lease.task) if lease.durable else None
        job = CurrentJob(lease, self._reporter, self._clock.now_ms)
        if definition is None or self._stopping:
            self._settle(job, self._outcome_unstarted(lease))
            return
        self.stop_lapsed({lease.id})  # an earlier attempt that still runs has lost its lease to this one
        running = self._running[lease.id] = RunningJob(lease, job, definition)
        running.task = asyncio.create_task(self._run(running, kept[1] if kept else None), name=_TASK_NAME + lease.id)

    def settle_unbegun(self) -> None:
        """Settle the jobs whose asyncio task was cancelled from outside before its first step."""
        for running in [one for one in self._running.values() if one.task.done()]:
            self._settle_unbegun(running)

    def _settle_unbegun(self, running: RunningJob) -> None:
        if not running.has_ended:
            self._free_slot(running)
            if not self._is_loop_ending():
                self._settle(running.job, running.cancelled_as or _CANCELLED_ITSELF)

    def _cancel_running(self, running: RunningJob, outcome: Outcome) -> None:
        """Cancel a job's asyncio task, once, and report it if it ignores that."""
        running.task.add_done_callback(lambda _: self._settle_unbegun(running))
        running.cancel(outcome)
        running.call_later(self._settings.cancel_grace_s, self._report_ignored_cancel)

    def _time_out(self, running: RunningJob) -> None:
        if running.cancelled_as is None:
            self._cancel_running(running, self._executor.timed_out(running.job, running.definition, running.task))

    def _report_ignored_cancel(self, running: RunningJob) -> None:
        """Log and record that a job ignored cancellation for the grace period."""
        if running.has_ended or running.is_reported or running.cancelled_as is None:
            return
        running.is_reported = True
        logger.warning(
            "job %s (%s) ignored cancellation for %g s and still runs; it keeps its slot until it ends: "
            "let a coroutine end on CancelledError, let a function check current_job().cancelled",
            running.lease.id, running.lease.task, self._settings.cancel_grace_s,
        )  # fmt: skip
        record = asyncio.create_task(self._record_ignored_cancel(running), name=f"asyncbg-record-{running.lease.id}")
        self._records.add(record)
        record.add_done_callback(self._records.discard)

    async def _record_ignored_cancel(self, running: RunningJob) -> None:
        data = {"reason": running.job.cancelled.reason, "grace_s": self._settings.cancel_grace_s}
        try:
            await self._backend.record(running.lease, EventType.CANCEL_IGNORED.value, dump(data))
        except BaseException as error:
            if ends_task(error):
                raise
            logger.warning("cannot record that job %s ignored cancellation: %s", running.lease.id, type(error).__name__)
        if running.is_abandoned_when_late:
            self._abandon(running)

    def _abandon(self, running: RunningJob) -> None:
        """Settle a job that still runs; its later outcome is discarded."""
        if not running.has_ended and running.cancelled_as is not None:
            self._free_slot(running)
            self._settle(running.job, running.cancelled_as)

    async def _run(self, running: RunningJob, bound: dict[str, Any] | None) -> None:
        timeout_s = running.definition.options.timeout
        try:
            if timeout_s is not None:
                running.call_later(timeout_s, self._time_out)
            outcome: Outcome = await self._executor.attempt(running.job, running.definition, bound)
        except asyncio.CancelledError:
            if running.cancelled_as is None and self._is_loop_ending():
                self._free_slot(running)  # the job was not cancelled: the next start recovers it as after a crash
                raise
            outcome = _CANCELLED_ITSELF
        except GeneratorExit as error:
            outcome = self._executor.generator_exit_outcome(running.job, running.definition, error)
        except BaseException as error:
            if ends_task(error):
                raise
            self._errors.add("attempt", error, "job %s (%s) cannot be run", running.lease.id, running.lease.task)
            outcome = Failed(describe(error))
        if not running.has_ended:
            self._free_slot(running)
            self._settle(running.job, running.outcome(outcome))

    def _free_slot(self, running: RunningJob) -> None:
        """Free the slot, unless a later attempt of the same job holds it."""
        running.has_ended = True
        running.stop_timer()
        if self._running.get(running.lease.id) is running:
            del self._running[running.lease.id]
        if self._is_full:
            self._wake.set()

    def _settle(self, job: CurrentJob, outcome: Outcome) -> None:
        self._settler.add(Settlement(job.lease, outcome, self._last_progress(job)))

    def _last_progress(self, job: CurrentJob) -> str | None:
        """Return the last progress as JSON, None where there is none or it cannot be encoded."""
        try:
            return self._reporter.take(job)
        except BaseException as error:  # noqa: BLE001 - the reported objects may raise anything
            self._errors.add("progress", error, "the progress of job %s (%s) cannot be stored", job.id, job.task)
            return None

    def _outcome_unstarted(self, lease: Lease) -> Outcome:
        """Return the outcome of a claimed job that is not run by this process."""
        if self._stopping:
            return Released("the process shut down")
        if not lease.durable:
            return Failed(_FUNCTION_GONE)
        if lease.task not in self._skipped:
            logger.warning(
                "task %s is unknown in this process; its jobs are left to other processes until it is loaded",
                lease.task,
            )
            self._skipped.add(lease.task)
        return Released(NO_SUCH_TASK)
