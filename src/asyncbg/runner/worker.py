"""The worker: claims as many jobs as there are free slots, runs each as a task of its own, settles the outcomes."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncbg.backends.base import Backend, Settlement
from asyncbg.clock import Clock
from asyncbg.context import CurrentJob
from asyncbg.errors import DatabaseError
from asyncbg.job import Cancelled, Failed, JobError, Lease, Outcome, Released
from asyncbg.runner.executor import Executor, describe
from asyncbg.runner.progress import ProgressPump
from asyncbg.settings import RunnerSettings
from asyncbg.task import Registry, TaskDefinition

logger = logging.getLogger("asyncbg")

_LONGEST_WAIT_S = 1.0
_SETTLE_PAUSE_S = 0.5
_LONGEST_CLAIM_S = 10.0
_FUNCTION_GONE = JobError(
    type="NotDurableError", message="its function is not kept here any more; hand over a module-level function"
)


class Held(Protocol):
    """The jobs whose function and arguments live only in this process's memory."""

    def take(self, job_id: str) -> tuple[TaskDefinition, dict[str, Any]] | None:
        """The function and arguments of such a job."""
        ...

    def drop(self, job_id: str) -> None:
        """Forget a job that is final."""
        ...


@dataclass(slots=True, eq=False)
class _Running:
    """A job in a slot: its asyncio task, and why it was told to stop if it was."""

    lease: Lease
    job: CurrentJob
    task: asyncio.Task[None] = field(init=False)
    cancel: Outcome | None = None
    is_over: bool = False


class Worker:
    """Runs up to ``concurrency`` jobs at once. Each runs in its own asyncio task, with its own context.

    Plain asyncio tasks, not an anyio group: a job sees one cancellation, as asyncio code expects, and starting one
    costs a third.
    """

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        settings: RunnerSettings,
        *,
        executor: Executor,
        pump: ProgressPump,
        held: Held,
        clock: Clock,
    ) -> None:
        """Put the parts together; nothing runs before :meth:`run`."""
        self._backend = backend
        self._registry = registry
        self._settings = settings
        self._executor = executor
        self._pump = pump
        self._held = held
        self._clock = clock
        self._wake = asyncio.Event()
        self._wake.set()  # what an earlier process left is waiting already
        self._claimed = asyncio.Event()
        self._claimed.set()
        self._running: dict[str, _Running] = {}
        self._ended: list[Settlement] = []
        self._settler: asyncio.Task[None] | None = None
        self._skipped: set[str] = set()
        self._stopping = False
        self._more = False

    @property
    def active(self) -> int:
        """How many jobs run now."""
        return len(self._running)

    @property
    def job_ids(self) -> set[str]:
        """The jobs that run now."""
        return set(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits to be settled."""
        return not self._running and self._settler is None

    def job(self, job_id: str) -> CurrentJob | None:
        """A job that runs here, or None."""
        running = self._running.get(job_id)
        return running.job if running else None

    def wake(self) -> None:
        """There may be work: look at once."""
        self._wake.set()

    async def run(self) -> None:
        """Claim and start jobs until :meth:`stop`."""
        next_due_ms: int | None = None
        while not self._stopping:
            await self._wait(next_due_ms)
            try:
                next_due_ms = await self.claim()
            except DatabaseError as error:
                logger.error("cannot claim jobs: %s", error)
                await asyncio.sleep(_SETTLE_PAUSE_S)

    async def claim(self) -> int | None:
        """Fill the free slots; returns when the next scheduled job is due."""
        self._claimed.clear()
        try:
            return await self._fill()
        finally:
            self._claimed.set()

    async def _fill(self) -> int | None:
        next_due_ms: int | None = None
        while not self._stopping:
            free = self._settings.concurrency - len(self._running)
            self._more = free <= 0
            if self._more:
                break
            claimed = await self._backend.claim(free, lease_s=self._settings.lease_s, skip=self._skipped)
            next_due_ms = claimed.next_due_ms
            for lease in claimed.leases:
                self._start(lease)
            if len(claimed.leases) < free:
                break
        return next_due_ms

    def pause(self) -> None:
        """Claim nothing more; what runs goes on."""
        self._stopping = True
        self._wake.set()

    async def stop(self) -> None:
        """Claim nothing more, give running jobs the grace period, then cancel and release them."""
        self.pause()
        with contextlib.suppress(TimeoutError):  # what is being claimed now is given back as soon as it is ours
            async with asyncio.timeout(_LONGEST_CLAIM_S):
                await self._claimed.wait()
        if self._running:
            await asyncio.wait(
                [running.task for running in self._running.values()], timeout=self._settings.shutdown_grace_s
            )
        for running in list(self._running.values()):
            self._stop_one(running, Released("the process shut down"))
        stuck: set[asyncio.Task[None]] = set()
        while not stuck and (left := self._unsettled()):
            _, stuck = await asyncio.wait(left, timeout=max(5.0, self._settings.shutdown_grace_s))
        for task in stuck:
            logger.error("%s ignored its cancellation at shutdown", task.get_name())

    def _unsettled(self) -> list[asyncio.Task[None]]:
        tasks = [running.task for running in self._running.values()]
        return tasks if self._settler is None else [*tasks, self._settler]

    def cancel(self, job_id: str, reason: str) -> bool:
        """Cancel a job if it runs here."""
        running = self._running.get(job_id)
        if running is None or running.cancel is not None:
            return False
        self._stop_one(running, Cancelled(reason))
        return True

    def lapse(self, job_ids: set[str]) -> None:
        """Stop jobs that the store no longer holds for us."""
        for job_id in job_ids:
            running = self._running.get(job_id)
            if running is not None and running.cancel is None:
                logger.warning("job %s lost its lease and is stopped here", job_id)
                self._stop_one(running, Released("the lease lapsed"))

    def recheck_skipped(self) -> None:
        """Look again for tasks that were unknown: their module may be loaded now."""
        known = {name for name in self._skipped if self._registry.find(name) is not None}
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

    def _start(self, lease: Lease) -> None:
        held = None if lease.durable else self._held.take(lease.id)
        definition = held[0] if held else self._registry.find(lease.task) if lease.durable else None
        job = CurrentJob(lease, self._pump, self._clock.now_ms)
        if definition is None or self._stopping:
            self._end(job, self._unrun(lease))
            return
        self.lapse({lease.id})  # an attempt that still runs here has lost its lease to this one
        running = self._running[lease.id] = _Running(lease, job)
        running.task = asyncio.create_task(
            self._run(running, definition, held[1] if held else None), name=f"asyncbg-job-{lease.id}"
        )

    def _stop_one(self, running: _Running, outcome: Outcome) -> None:
        """Cancel a job's task; one that had not begun never reaches its own settling, so it is settled here."""

        def settle_unbegun(_: asyncio.Task[None]) -> None:
            if not running.is_over:
                self._leave(running)
                self._end(running.job, outcome)

        running.cancel = outcome
        running.task.add_done_callback(settle_unbegun)
        running.task.cancel()

    async def _run(self, running: _Running, definition: TaskDefinition, bound: dict[str, Any] | None) -> None:
        try:
            outcome: Outcome = await self._executor.attempt(running.job, definition, bound)
        except asyncio.CancelledError:
            outcome = running.cancel or Cancelled("the task cancelled itself")
        self._leave(running)
        self._end(running.job, outcome)

    def _leave(self, running: _Running) -> None:
        """Free the slot, unless a later attempt of the same job has it."""
        running.is_over = True
        if self._running.get(running.lease.id) is running:
            del self._running[running.lease.id]
        if self._more:
            self._wake.set()

    def _end(self, job: CurrentJob, outcome: Outcome) -> None:
        """Put an outcome where the next write takes it: all that ended meanwhile is settled by one call."""
        self._ended.append(Settlement(job.lease, outcome, self._pump.take(job)))
        if self._settler is None:
            self._settler = asyncio.create_task(self._settle(), name="asyncbg-settle")

    async def _settle(self) -> None:
        try:
            while self._ended:
                ended, self._ended = self._ended, []
                await self._write(ended)
        finally:
            self._settler = None

    async def _write(self, ended: list[Settlement]) -> None:
        """Write outcomes; on a database that cannot be used now, try again until it can or we must go."""
        while True:
            try:
                held = await self._backend.settle(ended)
                break
            except DatabaseError as error:
                logger.error("cannot settle %d jobs, of them %s: %s", len(ended), ended[0].lease.id, error)
                if self._stopping:
                    return
                await asyncio.sleep(_SETTLE_PAUSE_S)
            except Exception as error:  # noqa: BLE001 - told on the job it belongs to
                await self._write_apart(ended, error)
                return
        for settlement, is_held in zip(ended, held, strict=True):
            if not is_held:
                logger.warning("job %s had lost its lease; its outcome is dropped", settlement.lease.id)
            if not settlement.lease.durable and not isinstance(settlement.outcome, Released):
                self._held.drop(settlement.lease.id)

    async def _write_apart(self, ended: list[Settlement], error: Exception) -> None:
        """One outcome that cannot be written costs the others nothing; its own job fails with the reason."""
        if len(ended) > 1:
            for settlement in ended:
                await self._write([settlement])
            return
        logger.error("the outcome of job %s cannot be written: %s", ended[0].lease.id, type(error).__name__)
        if not isinstance(ended[0].outcome, Failed):
            await self._write([Settlement(ended[0].lease, Failed(describe(error)))])

    def _unrun(self, lease: Lease) -> Outcome:
        """What becomes of a claimed job that is not run here."""
        if self._stopping:
            return Released("the process shut down")
        if not lease.durable:
            return Failed(_FUNCTION_GONE)
        if lease.task not in self._skipped:
            logger.warning("no task %s in this process; its jobs are left to others until it is loaded", lease.task)
            self._skipped.add(lease.task)
        return Released("the task is not known here")
