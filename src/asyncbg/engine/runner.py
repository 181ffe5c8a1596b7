"""The runner: starts and stops the worker, its heartbeat, the watchdog and the background loops."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

from asyncbg.bus import EventBus
from asyncbg.core.clock import Clock
from asyncbg.core.error_log import ErrorLog
from asyncbg.core.event import Event
from asyncbg.core.supervisor import Loop, Supervisor
from asyncbg.engine.executor import Executor
from asyncbg.engine.progress import ProgressReporter
from asyncbg.engine.registry import InMemoryJobs, Registry
from asyncbg.engine.watchdog import BlockageRecorder, Watchdog
from asyncbg.engine.worker import Worker
from asyncbg.settings import Settings
from asyncbg.store.base import Backend

_HANDLERS_S = 2.0


class Runner:
    """Runs the worker of one process with its heartbeat, its watchdog and the given loops.

    ``worker`` is None before :meth:`start` and after :meth:`stop`.
    """

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        bus: EventBus,
        settings: Settings,
        *,
        executor: Executor,
        in_memory: InMemoryJobs,
        clock: Clock,
        errors: ErrorLog,
    ) -> None:
        self._backend = backend
        self._registry = registry
        self._bus = bus
        self._settings = settings
        self._executor = executor
        self._in_memory = in_memory
        self._clock = clock
        self._errors = errors
        self._supervisor = Supervisor()
        self.worker: Worker | None = None
        self._is_running = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_draining = False
        """Whether shutdown has begun: no more jobs are claimed."""
        self._reporter: ProgressReporter | None = None
        self._heartbeat: Heartbeat | None = None
        self._watchdog: Watchdog | None = None
        self._blockages: BlockageRecorder | None = None

    @property
    def is_running(self) -> bool:
        """Whether jobs are accepted: from start to stop, or until the event loop is closed."""
        return self._is_running and self._loop is not None and not self._loop.is_closed()

    @property
    def is_stranded(self) -> bool:
        """Whether the event loop was closed without a stop; call :meth:`abandon`."""
        return self._loop is not None and self._loop.is_closed()

    @property
    def blockages(self) -> Mapping[str, int]:
        """How often the event loop was blocked for longer than ``runner.watchdog_s``, by task."""
        return {} if self._watchdog is None else self._watchdog.counts

    @property
    def loop_restarts(self) -> Mapping[str, int]:
        """How often each loop was restarted."""
        restarts = self._supervisor.restarts
        return {**restarts, "handlers": restarts["handlers"] + self._bus.handler_restarts}

    @property
    def loops_down(self) -> Sequence[str]:
        """The loops that have ended and wait for their restart."""
        return [*self._supervisor.down, *(["handlers"] if self._bus.is_handler_down else [])]

    def start(self, loops: Callable[[Worker], Mapping[str, Loop]]) -> None:
        """Start running jobs; ``loops`` returns the background loops by name."""
        runner = self._settings.runner
        self._reporter = ProgressReporter(self._backend, per_s=self._settings.stream.progress_per_s)
        self.worker = Worker(
            self._backend, self._registry, runner, executor=self._executor, reporter=self._reporter,
            in_memory=self._in_memory, clock=self._clock, errors=self._errors,
            is_loop_ending=lambda: self._supervisor.is_loop_ending,
        )  # fmt: skip
        self._heartbeat = Heartbeat(
            lambda: self._backend.beat(lease_s=runner.lease_s), period_s=runner.lease_s / 4, errors=self._errors
        )
        self._heartbeat.start()
        self._blockages = BlockageRecorder(self._backend, self._publish, clock=self._clock)
        if runner.watchdog_s:
            self._watchdog = Watchdog(
                limit_s=runner.watchdog_s, lease_of=self.worker.lease_of, report=self._blockages.report,
                note=self._backend.write_note, errors=self._errors,
            )  # fmt: skip
            self._watchdog.start()
        for name, loop in loops(self.worker).items():
            self._supervisor.start(name, loop)
        self._loop = asyncio.get_running_loop()
        self._is_running = True

    def wake(self) -> None:
        """Let the worker claim now: there may be jobs."""
        if self.worker is not None:
            self.worker.wake()

    def stop_claiming(self) -> None:
        """Claim no more jobs. Safe in a signal handler; call :meth:`begin_drain` next."""
        self.is_draining = True
        if self.worker is not None:
            self.worker.stop_claiming()

    def begin_drain(self) -> None:
        """Claim no more jobs and start the grace period of those that run."""
        self.is_draining = True
        if self.worker is not None:
            self.worker.begin_drain()

    async def stop(self) -> None:
        """Claim no more jobs, let running jobs end within the grace period, release the rest."""
        self._is_running = False
        self.is_draining = True
        try:
            if self.worker is not None:
                await self.worker.stop()  # the heartbeat runs until then, so that leases stay valid
            if self._reporter is not None:
                await self._reporter.close()
            self._bus.drain()
            if self._supervisor.is_busy:
                await self._bus.join_handlers(_HANDLERS_S)
        finally:
            self.worker = None
            await self._end_loops()
            self._loop = None

    async def _end_loops(self) -> None:
        self.stop_heartbeat()
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._blockages is not None:
            await self._blockages.close()
        await self._supervisor.stop()

    def stop_heartbeat(self) -> None:
        """Stop the heartbeat."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    def abort(self) -> "list[asyncio.Task[None]]":
        """Drop all running jobs as a killed process does. Return the asyncio tasks being cancelled."""
        dropped = [] if self.worker is None else self.worker.abort()
        self.worker = self._reporter = None
        self._is_running = False
        return dropped

    def abandon(self) -> None:
        """Drop the state that belongs to an event loop that was closed without a stop."""
        self.stop_heartbeat()
        if self._watchdog is not None:
            self._watchdog.stop()
        self._supervisor.drop()
        self.worker = self._reporter = self._blockages = self._loop = None
        self._is_running = False

    def _publish(self, event: Event) -> None:
        self._bus.publish([event])


class Heartbeat:
    """Calls ``beat`` every ``period_s`` seconds from a thread of its own, from :meth:`start` to :meth:`stop`."""

    def __init__(self, beat: Callable[[], None], *, period_s: float, errors: ErrorLog | None = None) -> None:
        self._beat = beat
        self._errors = errors or ErrorLog()
        self._period_s = period_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asyncbg-heartbeat", daemon=True)

    def start(self) -> None:
        """Beat once, then start the thread. Raise OSError where the first beat fails."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; its sleep is interruptible, so this does not wait."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            try:
                self._beat()
                self._errors.recovered("heartbeat")
            except BaseException as error:  # noqa: BLE001 - leases lapse if the thread ends
                self._errors.add_once(
                    "heartbeat", error, "the heartbeat cannot be written; leases may lapse", is_ours=True
                )
