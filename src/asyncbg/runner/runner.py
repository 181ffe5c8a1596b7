"""The runner: the worker, and what goes on beside it from start to stop."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from asyncbg.backends.base import Backend
from asyncbg.bus import EventBus
from asyncbg.clock import Clock
from asyncbg.event import Event
from asyncbg.runner.executor import Executor
from asyncbg.runner.heartbeat import Heartbeat
from asyncbg.runner.in_memory import InMemoryJobs
from asyncbg.runner.progress import ProgressPump
from asyncbg.runner.watchdog import BlockageReport, Watchdog
from asyncbg.runner.worker import Worker
from asyncbg.settings import Settings
from asyncbg.task import Registry

logger = logging.getLogger("asyncbg")

_HANDLERS_S = 2.0


class Runner:
    """Runs the jobs of one process: the worker, its heartbeat, its watchdog, and the loops it is given.

    ``worker`` is None before :meth:`start` and after :meth:`stop`.
    """

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        bus: EventBus,
        settings: Settings,
        *,
        in_memory: InMemoryJobs,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Made by the engine; nothing runs before :meth:`start`."""
        self._backend = backend
        self._registry = registry
        self._bus = bus
        self._settings = settings
        self._in_memory = in_memory
        self._clock = clock
        self._rng = rng
        self.worker: Worker | None = None
        self.is_running = False
        """Whether jobs are accepted."""
        self.is_paused = False
        """Whether a shutdown has begun: no more jobs are claimed."""
        self._pump: ProgressPump | None = None
        self._heartbeat: Heartbeat | None = None
        self._watchdog: Watchdog | None = None
        self._blockages: BlockageReport | None = None
        self._loops: list[asyncio.Task[None]] = []

    @property
    def blockages(self) -> Mapping[str, int]:
        """How often the event loop was held for longer than ``runner.watchdog_s``, by task."""
        return {} if self._watchdog is None else self._watchdog.counts

    def start(self, loops: Callable[[Worker], Mapping[str, Coroutine[Any, Any, None]]]) -> None:
        """Run jobs; ``loops`` gives what goes on by itself until :meth:`stop`, by name."""
        runner = self._settings.runner
        executor = Executor(threads=runner.threads, clock=self._clock, rng=self._rng)
        self._pump = ProgressPump(self._backend, self._publish, per_s=self._settings.stream.progress_per_s)
        self.worker = Worker(
            self._backend, self._registry, runner, executor=executor, pump=self._pump, in_memory=self._in_memory,
            clock=self._clock,
        )  # fmt: skip
        self._heartbeat = Heartbeat(lambda: self._backend.beat(lease_s=runner.lease_s), period_s=runner.lease_s / 4)
        self._heartbeat.start()
        self._blockages = BlockageReport(self._backend, self._publish, clock=self._clock)
        if runner.watchdog_s:
            self._watchdog = Watchdog(
                limit_s=runner.watchdog_s, lease_of=self.worker.lease_of, tell=self._blockages.tell,
                note=self._backend.note,
            )  # fmt: skip
            self._watchdog.start()
        self._loops = [asyncio.create_task(loop, name=f"asyncbg-{name}") for name, loop in loops(self.worker).items()]
        for task in self._loops:
            task.add_done_callback(self._loop_ended)
        self.is_running = True

    def wake(self) -> None:
        """There may be work: let the worker look at once."""
        if self.worker is not None:
            self.worker.wake()

    def hold(self) -> None:
        """Claim no more jobs from this very moment on. Safe in a signal handler; :meth:`pause` is to follow."""
        self.is_paused = True
        if self.worker is not None:
            self.worker.hold()

    def pause(self) -> None:
        """Claim no more jobs; those that run get the grace period, which begins now."""
        self.is_paused = True
        if self.worker is not None:
            self.worker.pause()

    async def stop(self) -> None:
        """Claim nothing more, let running jobs end within the grace period, release the rest."""
        self.is_running = False
        self.is_paused = True
        try:
            if self.worker is not None:
                await self.worker.stop()  # the heartbeat goes on meanwhile: the leases of running jobs must hold
            if self._pump is not None:
                await self._pump.close()
            self._bus.drain()
            if self._loops:
                await self._bus.join_handlers(_HANDLERS_S)
        finally:
            self.worker = None
            await self._end_loops()

    async def _end_loops(self) -> None:
        self.stop_heartbeat()
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._blockages is not None:
            await self._blockages.close()
        loops, self._loops = self._loops, []
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    def stop_heartbeat(self) -> None:
        """Beat no more."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    def vanish(self) -> "list[asyncio.Task[None]]":
        """Be gone as a killed process is; returns the asyncio tasks of the coroutines that ran, which are ending."""
        dropped = [] if self.worker is None else self.worker.vanish()
        self.worker = self._pump = None
        self.is_running = False
        return dropped

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that ends by itself is a bug of ours: say so, take no more jobs, and let readiness tell."""
        if task.cancelled() or self.is_paused:
            return
        error = task.exception()
        logger.critical("%s ended: no more jobs are accepted; restart the process", task.get_name(), exc_info=error)
        self.is_running = False

    def _publish(self, event: Event) -> None:
        self._bus.publish([event])
