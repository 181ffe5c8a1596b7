"""The engine: registers tasks, enqueues jobs, runs them and publishes their events. Independent of the web."""

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
from asyncbg.engine.enqueuer import PreparedJob
from asyncbg.engine.job_handle import Job
from asyncbg.engine.options import CallOptions, TaskOptions
from asyncbg.engine.parts import assemble
from asyncbg.engine.registry import unknown_tasks
from asyncbg.engine.schedule import Cron
from asyncbg.engine.target import Target, enqueue_target, prepare_target
from asyncbg.engine.task_handle import Task
from asyncbg.engine.worker import Worker
from asyncbg.errors import NotRunningError
from asyncbg.settings import Settings, load_settings
from asyncbg.store.base import Backend, Enqueued
from asyncbg.store.sqlite.database import open_all

logger = logging.getLogger("asyncbg")

P = ParamSpec("P")
R = TypeVar("R")


class Engine:
    """The engine of one process: registers tasks, enqueues and runs jobs. Use it as ``async with``."""

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
        Raise DuplicateTaskError, OptionsError.
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
        """Run the decorated task or function by a cron expression: ``@bg.schedule("*/5 * * * *")``.

        Each slot is fired once over all processes. Of the slots missed while none ran, the latest is fired.
        ``timezone`` is a name such as ``Europe/Berlin`` or a tzinfo. Raise ScheduleError, ArgumentsError.
        """
        return ScheduleDecorator(self.task(), Cron.parse(expression, timezone))

    def on(self, event_type: str, *, task: str | None = None) -> Callable[[Handler], Handler]:
        """Call the decorated function with every event of a type: ``@bg.on("job.failed", task="send_email")``.

        Handlers run independently of jobs. Their errors are logged and counted.
        """

        def register(handler: Handler) -> Handler:
            self.bus.on(event_type, handler, task=task)
            return handler

        return register

    # Starting and stopping

    @property
    def is_running(self) -> bool:
        """Whether jobs are accepted."""
        return self._parts.runner.is_running

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the database and all stores in it, then start to run jobs. Raise DatabaseError and close it again."""
        if self.is_running:
            raise NotRunningError("this AsyncBG is running already; enter its lifespan once")
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
        """Abandon a start whose event loop was closed without a stop; its jobs are recovered as after a crash."""
        logger.warning("the event loop of this AsyncBG was closed before stop(); its running jobs are run again")
        self._abandon()
        await self.backend.close()

    def _abandon(self) -> None:
        """Drop all state that belongs to a closed event loop."""
        self._parts.runner.abandon()
        self.bus.abandon()
        self._parts.in_memory.clear()

    def _loops(self, worker: Worker) -> Mapping[str, Loop]:
        """Return the background loops by name; manual mode overrides this."""
        return {"worker": worker.run, "handlers": self.bus.run_handlers, **self._parts.maintenance.loops()}

    async def stop(self) -> None:
        """Claim no more jobs, let running jobs end within the grace period, release the rest, close the database."""
        if self._parts.runner.is_stranded:
            await self._take_over()
            return
        try:
            await self._parts.runner.stop()
        finally:
            await self._parts.maintenance.save_counters()
            await self.backend.close()

    # Enqueueing

    async def enqueue(self, target: Target, *args: Any, **kwargs: Any) -> Job:
        """Enqueue a job for a task or a plain function. Return when it is on disk.

        With ``connection=``, an aiosqlite connection to the same database, the job is stored in the transaction open
        there and exists once the caller commits. Any other value of that name is an argument of the task.
        Raise ArgumentsError, OverloadedError, DatabaseError, NotRunningError, TransactionError.
        """
        return await enqueue_target(self._parts.enqueuer, target, args, kwargs)

    def prepare(
        self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], *, owner: str | None = None
    ) -> PreparedJob:
        """Validate a call and assign its id, for :meth:`accept`. Raise ArgumentsError, TransactionError."""
        return prepare_target(self._parts.enqueuer, target, args, kwargs, owner=owner)

    async def accept(self, prepared: Sequence[PreparedJob], *, stop_on_failure: bool = False) -> Enqueued:
        """Store prepared jobs as one batch that runs in order. Return when they are on disk.

        Raise NotRunningError, OverloadedError, IdempotencyError, DatabaseError; nothing is stored then.
        """
        return await self._parts.enqueuer.accept(prepared, stop_on_failure=stop_on_failure)

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
        """Enqueue a job for a registered task by name. Raise UnknownTaskError, and the errors of :meth:`enqueue`."""
        definition = self._parts.registry.get(name)
        options = CallOptions(
            delay=delay_s, priority=priority, idempotency_key=idempotency_key, tags=tags, owner=owner,
            fingerprint=fingerprint,
        )  # fmt: skip
        bound = definition.arguments.validate(name, args)
        prepared = self._parts.enqueuer.prepare(definition, bound, options)
        await self._parts.enqueuer.accept([prepared])
        return prepared.job

    # Inspecting and controlling jobs

    async def unknown_tasks(self) -> Mapping[str, int]:
        """Return the tasks unknown in this process, with the number of their waiting jobs.

        These jobs wait for a process that has the task and do not count towards a limit. Cancel them if there is none.
        """
        return unknown_tasks(await self.backend.waiting(), self._parts.registry)

    async def get(self, job_id: str) -> JobRecord:
        """Return one job, with the latest progress. Raise JobNotFoundError."""
        return await self._parts.control.get(job_id)

    async def wait(self, job_id: str, timeout_s: float | None = None, *, through_shutdown: bool = False) -> JobRecord:
        """Wait for the job's final state. Return the latest record, final or not, after ``timeout_s`` seconds.

        At shutdown it returns at once, so that long polls end, unless ``through_shutdown`` is set.
        """
        return await self._parts.control.wait(job_id, timeout_s, through_shutdown=through_shutdown)

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """Return the latest attempts of a job, oldest first. Raise JobNotFoundError."""
        return await self._parts.control.attempts(job_id)

    def watch(self, job_id: str) -> AsyncIterator[Event]:
        """Iterate over a job's events from the first to the final one, progress included. Raise JobNotFoundError."""
        return self._parts.control.watch(job_id)

    async def cancel(self, job_id: str, reason: str = "") -> JobState:
        """Cancel a job: at once if it is not running, else by cancelling its coroutine.

        Raise JobNotFoundError, JobStateError.
        """
        return await self._parts.control.cancel(job_id, reason)

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again; its events are kept. Raise JobNotFoundError, JobStateError."""
        return await self._parts.control.retry(job_id)
