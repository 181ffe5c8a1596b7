"""Periodic maintenance: renews leases, rescues lost jobs, fires schedules and purges old jobs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from asyncbg.core.clock import Clock
from asyncbg.core.error_log import ErrorLog, ends_task
from asyncbg.core.supervisor import Loop
from asyncbg.engine.backlog import Backlog
from asyncbg.engine.event_relay import EventRelay
from asyncbg.engine.metrics import Telemetry
from asyncbg.engine.registry import Registry, count_known_jobs
from asyncbg.engine.runner import Runner
from asyncbg.engine.schedule import Schedules
from asyncbg.errors import AsyncBGError, OutageError
from asyncbg.settings import RunnerSettings
from asyncbg.store.base import Backend

logger = logging.getLogger("asyncbg")

_TICK_S = 0.1
_TAIL_S = 0.1
_RENEW_S = 0.5  # the longest delay of a cancel by another process
_RESCUE_S = 1.0
_COUNTS_S = 1.0
_PURGE_S = 60.0
_PURGE_SLICE = 500


class Maintenance:
    """The periodic work of a running engine."""

    def __init__(
        self,
        backend: Backend,
        runner: Runner,
        settings: RunnerSettings,
        *,
        relay: EventRelay,
        telemetry: Telemetry,
        schedules: Schedules,
        backlog: Backlog,
        registry: Registry,
        clock: Clock,
        errors: ErrorLog,
    ) -> None:
        self._backend = backend
        self._runner = runner
        self._settings = settings
        self._relay = relay
        self._telemetry = telemetry
        self._schedules = schedules
        self._backlog = backlog
        self._registry = registry
        self._clock = clock
        self._errors = errors

    def loops(self) -> Mapping[str, Loop]:
        """Return one loop for each kind of work, by name."""
        renew_s = min(_RENEW_S, self._settings.lease_s / 4)
        purge_s = min(_PURGE_S, max(1.0, self._settings.retention_s / 4))
        return {
            "schedules": self._every(_TICK_S, self._fire_schedules, "firing schedules"),
            "tail": self._every(_TAIL_S, self._relay.follow_log, "following the event log"),
            "renewal": self._every(renew_s, self._renew, "renewing leases"),
            "rescue": self._every(_RESCUE_S, self._rescue, "rescuing lost jobs"),
            "counts": self._every(_COUNTS_S, self._share_counts, "sharing counters"),
            "retention": self._every(purge_s, self._purge, "purging old jobs"),
        }

    def _every(self, period_s: float, chore: Callable[[], Awaitable[None]], name: str) -> Loop:
        return partial(every, period_s, chore, name=name, errors=self._errors)

    async def run_once(self) -> None:
        """Do the work of all loops once; for manual mode."""
        await self._relay.follow_log()
        await self._rescue()
        await self._fire_schedules()
        await self._renew()
        await self._purge()

    async def restore_counters(self) -> None:
        """Restore the counters of the process that held this slot before."""
        try:
            kept, _ = await self._backend.load_counters()
        except (OSError, ValueError) as error:
            logger.warning("the counters of this slot cannot be read and start at zero: %s", type(error).__name__)
            kept = None
        self._telemetry.restore(kept)

    async def save_counters(self) -> None:
        """Save the counters at shutdown; log a failure instead of raising it."""
        try:
            await self._share_counts()
        except (OSError, AsyncBGError) as error:
            logger.warning("the last counters are not saved: %s", error)

    async def _share_counts(self) -> None:
        if self._telemetry.has_changes:
            await self._backend.save_counters(self._telemetry.snapshot())

    async def recount(self) -> None:
        """Recount the waiting jobs of known tasks in the store."""
        mark = self._backlog.snapshot()
        total = count_known_jobs(await self._backend.waiting(), self._registry)
        owners = self._backlog.owners_to_recount()
        counted = await self._backend.waiting_of(owners, self._backlog.max_per_owner or 0) if owners else {}
        self._backlog.recount(total, counted, mark)

    async def recount_all(self) -> None:
        """Recount at startup, all owners included."""
        if self._backlog.max_per_owner is not None:
            owners = await self._backend.owners()
            self._backlog.track(owners)
            for _ in range(0, len(owners), max(1, len(self._backlog.owners_to_recount()))):
                await self.recount()
        await self.recount()

    async def _renew(self) -> None:
        worker = self._runner.worker
        if worker is None:
            return
        worker.recheck_skipped()
        worker.settle_unbegun()
        known = worker.job_ids
        if worker.is_idle:
            return
        alive = await self._backend.renew(lease_s=self._settings.lease_s)
        for job_id, reason in alive.items():
            if reason is not None:
                worker.cancel(job_id, reason)
        worker.stop_lapsed(known - set(alive))

    async def _rescue(self) -> None:
        if await self._backend.follow_clock() and self._runner.worker is not None:
            logger.warning("the wall clock jumped: due times move by the same amount, leases are not affected")
            self._runner.wake()
        if await self._backend.rescue():
            self._runner.wake()
        await self.recount()

    async def _fire_schedules(self) -> None:
        if self._runner.is_running:
            await self._schedules.tick()

    async def _purge(self) -> None:
        before_ms = self._clock.now_ms() - int(self._settings.retention_s * 1000)
        purged = _PURGE_SLICE
        while purged == _PURGE_SLICE:
            purged = await self._backend.purge(before_ms=before_ms, limit=_PURGE_SLICE)


async def every(
    period_s: float, chore: Callable[[], Awaitable[None]], *, name: str, errors: ErrorLog | None = None
) -> None:
    """Await ``chore()`` every ``period_s`` seconds until cancelled. An error is logged once; the loop continues.

    Outages are logged by the database itself. Any error that is no AsyncBGError is logged with its traceback and
    counted in ``errors``.
    """
    errors = errors or ErrorLog()
    failing = False
    while True:
        await asyncio.sleep(period_s)
        try:
            await chore()
            failing = False
            errors.recovered(name)
        except AsyncBGError as error:
            if not failing and not isinstance(error, OutageError):
                logger.error("%s failed and is retried: %s", name, error)
            failing = True
        except BaseException as error:
            if ends_task(error):
                raise
            errors.add_once(name, error, "%s failed and is retried", name, is_ours=True)
