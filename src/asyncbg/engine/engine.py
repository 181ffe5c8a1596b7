"""The engine: registers tasks, accepts jobs, runs them, tells what happened. Knows nothing of the web."""

import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta, tzinfo
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from asyncbg.bus import EventBus, Handler
from asyncbg.core.clock import Clock, SystemClock
from asyncbg.core.event import Event
from asyncbg.core.job import ANONYMOUS, Attempt, JobRecord, JobState
from asyncbg.core.retry import RetryPolicy
from asyncbg.core.supervisor import Loop
from asyncbg.engine.decorator import ScheduleDecorator, TaskDecorator
from asyncbg.engine.job_handle import Job
from asyncbg.engine.options import CallOptions, TaskOptions
from asyncbg.engine.parts import assemble
from asyncbg.engine.registry import unknown_tasks
from asyncbg.engine.schedule import Cron
from asyncbg.engine.target import Target, enqueue_target
from asyncbg.engine.task_handle import Task
from asyncbg.engine.worker import Worker
from asyncbg.errors import NotRunningError
from asyncbg.settings import Settings, load_settings
from asyncbg.store.base import Backend
from asyncbg.store.sqlite.database import open_all

logger = logging.getLogger("asyncbg")

P = ParamSpec("P")
R = TypeVar("R")


class Engine:
    """Everything that accepts and runs jobs in one process. Use it as ``async with``."""

    def __init__(
        self, settings: Settings | None = None, *, clock: Clock | None = None, rng: random.Random | None = None
    ) -> None:
        """Read the settings from the environment unless given. Raise SettingsError. Opens nothing yet."""
        self.settings = settings or load_settings()
        self.clock = clock or SystemClock()
        self._parts = assemble(self.settings, clock=self.clock, rng=rng)
        self._store_openers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """Open the stores beside the jobs in the same database: called at every start, before a job is claimed."""

    @property
    def backend(self) -> Backend:
        """The store of the jobs, for code that inspects it directly."""
        return self._parts.backend

    @property
    def bus(self) -> EventBus:
        """The event bus of this process, for code that inspects it directly."""
        return self._parts.bus

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
        decorator = TaskDecorator(self._parts.enqueuer, self._parts.schedules, name, options)
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
        return self._parts.runner.is_running

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
        """Open the database and all stores in it, then start to run jobs. Raise DatabaseError and close it again."""
        if self.is_running:
            raise NotRunningError("this AsyncBG runs already; enter its lifespan once")
        if self._parts.runner.is_stranded:
            await self._take_over()
        self._parts.runner.is_draining = False
        await self.backend.open()
        try:
            await open_all(*(open_store() for open_store in self._store_openers))
            await self._parts.maintenance.restore_counters()
            position = await self.backend.position()
            self.bus.start(epoch=self.backend.epoch, last_seq=position.last_seq)
            await self._parts.maintenance.recount_all()
            await self._parts.schedules.start()
            self._parts.runner.start(self._loops)
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
        self._parts.runner.abandon()
        self.bus.abandon()
        self._parts.in_memory.clear()

    def _loops(self, worker: Worker) -> Mapping[str, Loop]:
        """What goes on by itself from start to stop, by name; an engine that is driven by hand has less of it."""
        return {"worker": worker.run, "handlers": self.bus.run_handlers, **self._parts.maintenance.loops()}

    async def stop(self) -> None:
        """Claim nothing more, let running jobs end within the grace period, release the rest, close the database."""
        if self._parts.runner.is_stranded:
            await self._take_over()
            return
        try:
            await self._parts.runner.stop()
        finally:
            await self._parts.maintenance.save_counters()
            await self.backend.close()

    # Accepting

    async def enqueue(self, target: Target, *args: Any, **kwargs: Any) -> Job:
        """Accept a job for a task or a plain function; returns when it is on disk.

        With ``connection=``, an aiosqlite connection to the same database, the job is part of the transaction that is
        open there: it exists once the caller has committed. Any other value of that name is an argument of the task.
        Raises ArgumentsError, OverloadedError, DatabaseError, NotRunningError, TransactionError.
        """
        return await enqueue_target(self._parts.enqueuer, target, args, kwargs)

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
        definition = self._parts.registry.get(name)
        options = CallOptions(
            delay=delay_s, priority=priority, idempotency_key=idempotency_key, tags=tags, owner=owner,
            fingerprint=fingerprint,
        )  # fmt: skip
        bound = definition.arguments.validate(name, args)
        prepared = self._parts.enqueuer.prepare(definition, bound, options)
        await self._parts.enqueuer.accept([prepared])
        return prepared.job

    # Steering and looking

    async def unknown_tasks(self) -> Mapping[str, int]:
        """The tasks that stored jobs name and this process does not have, and how many of their jobs wait.

        They are left for a process that has the task, and count towards no bound; cancel them where there is none.
        """
        return unknown_tasks(await self.backend.waiting(), self._parts.registry)

    async def get(self, job_id: str) -> JobRecord:
        """One job, with the freshest progress. Raises JobNotFoundError."""
        return await self._parts.control.get(job_id)

    async def wait(self, job_id: str, timeout_s: float | None = None, *, through_shutdown: bool = False) -> JobRecord:
        """Wait for the job's final state; the latest record, final or not, when the time is over.

        At a shutdown it returns at once, so that no long poll holds the server, unless ``through_shutdown`` is set.
        """
        return await self._parts.control.wait(job_id, timeout_s, through_shutdown=through_shutdown)

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """The latest attempts of a job, oldest first. Raises JobNotFoundError."""
        return await self._parts.control.attempts(job_id)

    def watch(self, job_id: str) -> AsyncIterator[Event]:
        """A job's events from the first one to its final one, progress included. Raises JobNotFoundError."""
        return self._parts.control.watch(job_id)

    async def cancel(self, job_id: str, reason: str = "") -> JobState:
        """Cancel a job: at once if it does not run yet, through its coroutine if it does.

        Raises JobNotFoundError, JobStateError.
        """
        return await self._parts.control.cancel(job_id, reason)

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again; its history stays. Raises JobNotFoundError, JobStateError."""
        return await self._parts.control.retry(job_id)
