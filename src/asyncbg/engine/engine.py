"""The engine: registers tasks, accepts jobs, runs them, tells what happened. Knows nothing of the web."""

import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta, tzinfo
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from asyncbg.bus import EventBus, Handler
from asyncbg.core.clock import Clock, SystemClock
from asyncbg.core.error_log import ErrorLog
from asyncbg.core.event import Event
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import ANONYMOUS, Attempt, JobRecord, JobState
from asyncbg.core.retry import RetryPolicy
from asyncbg.core.supervisor import Loop
from asyncbg.engine.backlog import Backlog
from asyncbg.engine.decorator import ScheduleDecorator, TaskDecorator
from asyncbg.engine.enqueuer import Enqueuer, Prepared
from asyncbg.engine.event_relay import EventRelay
from asyncbg.engine.executor import Executor
from asyncbg.engine.job_control import JobControl
from asyncbg.engine.job_handle import Job
from asyncbg.engine.maintenance import Maintenance
from asyncbg.engine.metrics import Telemetry
from asyncbg.engine.options import CallOptions, TaskOptions
from asyncbg.engine.registry import InMemoryJobs, Registry, unknown_tasks
from asyncbg.engine.runner import Runner
from asyncbg.engine.schedule import Cron, Schedules
from asyncbg.engine.target import Target, enqueue_target, prepare_target
from asyncbg.engine.task_handle import Task
from asyncbg.engine.worker import Worker
from asyncbg.errors import NotRunningError
from asyncbg.privacy.encryption import Encryption
from asyncbg.settings import Settings, load_settings
from asyncbg.store.base import Backend, Enqueued
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database, sqlite_path

logger = logging.getLogger("asyncbg")

P = ParamSpec("P")
R = TypeVar("R")


class Engine:
    """Everything that accepts and runs jobs in one process. Use it as ``async with``."""

    def __init__(
        self, settings: Settings | None = None, *, clock: Clock | None = None, rng: random.Random | None = None
    ) -> None:
        """Read the settings from the environment unless given. Raises SettingsError. Opens nothing yet."""
        self.settings = settings or load_settings()
        self.clock = clock or SystemClock()
        self.registry = Registry()
        self.errors = ErrorLog()
        """The errors that cost one item only, counted by part."""
        self.bus = EventBus(buffer=self.settings.stream.buffer, errors=self.errors)
        self.database = Database(sqlite_path(self.settings.database_url), errors=self.errors)
        self.backend: Backend = SQLiteBackend(
            self.database, clock=self.clock, encryption=Encryption(self.settings.privacy.keys())
        )
        limits = self.settings.runner
        backlog = Backlog(most=limits.max_queued, most_per_owner=limits.max_queued_per_owner)
        in_memory = self._in_memory = InMemoryJobs()
        self.executor = Executor(
            threads=limits.threads, clock=self.clock, most_result_bytes=self.settings.jobs.max_result_bytes,
            rng=rng or random.Random(),  # nosec B311  # noqa: S311 - jitter, not a secret
            keeps_tracebacks=self.settings.jobs.tracebacks,
        )  # fmt: skip
        self._runner = Runner(
            self.backend, self.registry, self.bus, self.settings, executor=self.executor, in_memory=in_memory,
            clock=self.clock, errors=self.errors,
        )  # fmt: skip
        self._relay = EventRelay(self.backend, self.bus, backlog, self._runner)
        self.backend.on_commit = self._relay.committed
        self.backend.on_progress = self._relay.progressed
        self.telemetry = Telemetry()
        self.telemetry.follow(self.backend)
        self.control = JobControl(self.backend, self.bus, self._runner, in_memory)
        self.enqueuer = Enqueuer(
            self.backend, self.registry, self.control, runner=self._runner, executor=self.executor,
            backlog=backlog, in_memory=in_memory, ids=IdGenerator(self.clock), clock=self.clock,
            most_args_bytes=self.settings.jobs.max_args_bytes,
        )  # fmt: skip
        self.schedules = Schedules(self.backend, self.enqueuer.fire, clock=self.clock, errors=self.errors)
        self._maintenance = Maintenance(
            self.backend, self._runner, limits, telemetry=self.telemetry, relay=self._relay,
            schedules=self.schedules, backlog=backlog,
            registry=self.registry, clock=self.clock, errors=self.errors,
        )  # fmt: skip

    # Registering

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        function: None = ...,
        /,
        *,
        name: str | None = ...,
        retries: int = ...,
        timeout: float | timedelta | None = ...,
        queue: str = ...,
        priority: int = ...,
        key: str | Callable[..., str] | None = ...,
        at_most_once: bool = ...,
    ) -> TaskDecorator: ...
    def task(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        retries: int = 0,
        timeout: float | timedelta | None = None,
        queue: str = "default",
        priority: int = 0,
        key: str | Callable[..., str] | None = None,
        at_most_once: bool = False,
    ) -> Any:
        """Register a function as a task, under its own name unless ``name`` gives another.

        ``retries`` counts the attempts after the first; ``timeout`` is seconds for one attempt; higher ``priority``
        runs first; ``key`` (a format string over the arguments, or a function of them) allows one open job for each
        value; ``at_most_once`` fails an interrupted job instead of running it again.
        Raises DuplicateTaskError, OptionsError.
        """
        options = TaskOptions(
            retry=RetryPolicy(retries=retries),
            timeout=timeout.total_seconds() if isinstance(timeout, timedelta) else timeout,
            queue=queue,
            priority=priority,
            key=key,
            at_most_once=at_most_once,
        )
        decorator = TaskDecorator(self.enqueuer, self.schedules, name, options)
        return decorator if function is None else decorator(function)

    def schedule(self, expression: str, *, timezone: str | tzinfo = "UTC") -> ScheduleDecorator:
        """Run the decorated task, or function, whenever the cron expression says: ``@bg.schedule("*/5 * * * *")``.

        Once per slot, however many processes run; of the slots missed while none ran, the latest is caught up.
        ``timezone`` is a name such as ``Europe/Berlin`` or a tzinfo. Raises ScheduleError, ArgumentsError.
        """
        return ScheduleDecorator(self.task(), Cron.parse(expression, timezone))

    def on(self, event_type: str, *, task: str | None = None) -> Callable[[Handler], Handler]:
        """Call the decorated function with every such event: ``@bg.on("job.failed", task="send_email")``.

        A handler runs beside the engine and can never hurt it: what it raises is logged and counted.
        """

        def register(handler: Handler) -> Handler:
            self.bus.on(event_type, handler, task=task)
            return handler

        return register

    # Life

    @property
    def is_running(self) -> bool:
        """Whether jobs are accepted."""
        return self._runner.is_running

    @property
    def is_paused(self) -> bool:
        """Whether a shutdown has begun: no more jobs are claimed."""
        return self._runner.is_paused

    @property
    def blockages(self) -> Mapping[str, int]:
        """How often the event loop was held for longer than ``runner.watchdog_s``, by task."""
        return self._runner.blockages

    @property
    def loop_restarts(self) -> Mapping[str, int]:
        """How often each of the engine's own loops had to be started again."""
        return self._runner.loop_restarts

    @property
    def loops_down(self) -> Sequence[str]:
        """Those of the engine's own loops that have ended and wait for their next start."""
        return self._runner.loops_down

    async def __aenter__(self) -> Self:
        """Open the database and start to run jobs."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop: running jobs get the grace period, then are released."""
        await self.stop()

    async def start(self) -> None:
        """Open the database and start to run jobs. Raises DatabaseError; nothing is left open then."""
        if self.is_running:
            raise NotRunningError("this AsyncBG runs already; enter its lifespan once")
        if self._runner.is_stranded:
            await self._take_over()
        self._runner.is_paused = False
        await self.backend.open()
        try:
            await self._maintenance.begin_counts()
            self.bus.start(epoch=self.backend.epoch, last_seq=(await self.backend.position()).last_seq)
            await self._maintenance.count()
            await self.schedules.start()
            self._runner.start(self._loops)
        except BaseException:
            await self.stop()
            raise

    async def _take_over(self) -> None:
        """End a life whose event loop was closed without a stop: the next one finds its jobs as those of a crash."""
        logger.warning(
            "the event loop that this AsyncBG ran in was closed before it was stopped; what ran is run again"
        )
        self._abandon()
        await self.backend.close()

    def _abandon(self) -> None:
        """Drop all that belongs to an event loop that was closed."""
        self._runner.abandon()
        self.bus.abandon()
        self._in_memory.clear()

    def _loops(self, worker: Worker) -> Mapping[str, Loop]:
        """What goes on by itself from start to stop, by name; an engine that is driven by hand has less of it."""
        return {"worker": worker.run, "handlers": self.bus.run_handlers, **self._maintenance.loops()}

    def hold(self) -> None:
        """Claim no more jobs from this very moment on. Safe in a signal handler; :meth:`pause` is to follow."""
        self._runner.hold()

    def pause(self) -> None:
        """Claim no more jobs; those that run get the grace period, which begins now."""
        self._runner.pause()

    async def stop(self) -> None:
        """Claim nothing more, let running jobs end within the grace period, release the rest, close the database."""
        if self._runner.is_stranded:
            await self._take_over()
            return
        try:
            await self._runner.stop()
        finally:
            await self._maintenance.save_counters()
            await self.backend.close()

    # Accepting

    async def enqueue(self, target: Target, *args: Any, **kwargs: Any) -> Job:
        """Accept a job for a task or a plain function; returns when it is on disk.

        With ``connection=``, an aiosqlite connection to the same database, the job is part of the transaction that is
        open there: it exists once the caller has committed. Any other value of that name is an argument of the task.
        Raises ArgumentsError, OverloadedError, DatabaseError, NotRunningError, TransactionError.
        """
        return await enqueue_target(self.enqueuer, target, args, kwargs)

    async def submit(
        self,
        name: str,
        args: Mapping[str, Any],
        *,
        owner: str = ANONYMOUS,
        delay_s: float | None = None,
        priority: int | None = None,
        tags: Sequence[str] = (),
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
    ) -> Job:
        """Accept a job for a registered task by name, as a caller from outside does. Raises UnknownTaskError too."""
        definition = self.registry.get(name)
        options = CallOptions(
            delay=delay_s, priority=priority, idempotency_key=idempotency_key, tags=tags, owner=owner,
            fingerprint=fingerprint,
        )  # fmt: skip
        bound = definition.arguments.validate(name, args)
        prepared = self.enqueuer.prepare(definition, bound, options)
        await self.accept([prepared])
        return prepared.job

    def prepare(
        self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], *, owner: str | None = None
    ) -> Prepared:
        """Validate a call and give it an id; nothing is stored yet. Raises ArgumentsError, TransactionError."""
        return prepare_target(self.enqueuer, target, args, kwargs, owner=owner)

    async def accept(self, prepared: Sequence[Prepared], *, stop_on_failure: bool = False) -> Enqueued:
        """Store prepared jobs as one batch, to run one after another; returns when they are on disk.

        Raises NotRunningError, OverloadedError, IdempotencyError, DatabaseError; nothing is stored then.
        """
        return await self.enqueuer.accept(prepared, stop_on_failure=stop_on_failure)

    # Steering and looking

    async def unknown_tasks(self) -> Mapping[str, int]:
        """The tasks that stored jobs name and this process does not have, and how many of their jobs wait.

        They are left for a process that has the task, and count towards no bound; cancel them where there is none.
        """
        return unknown_tasks(await self.backend.waiting(), self.registry)

    async def get(self, job_id: str) -> JobRecord:
        """One job, with the freshest progress. Raises JobNotFoundError."""
        return await self.control.get(job_id)

    async def wait(self, job_id: str, timeout_s: float | None = None, *, through_pause: bool = False) -> JobRecord:
        """Wait for the job's final state; the latest record, final or not, when the time is over.

        At a shutdown it returns at once, so that no long poll holds the server, unless ``through_pause`` is set.
        """
        return await self.control.wait(job_id, timeout_s, through_pause=through_pause)

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """The latest attempts of a job, oldest first. Raises JobNotFoundError."""
        return await self.control.attempts(job_id)

    def watch(self, job_id: str) -> AsyncIterator[Event]:
        """A job's events from the first one to its final one, progress included. Raises JobNotFoundError."""
        return self.control.watch(job_id)

    async def cancel(self, job_id: str, reason: str = "") -> JobState:
        """Cancel a job: at once if it does not run yet, through its coroutine if it does.

        Raises JobNotFoundError, JobStateError.
        """
        return await self.control.cancel(job_id, reason)

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again; its history stays. Raises JobNotFoundError, JobStateError."""
        return await self.control.retry(job_id)
