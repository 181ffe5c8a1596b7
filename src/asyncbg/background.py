"""The engine: registers tasks, accepts jobs, runs them, tells what happened. Knows nothing of the web."""

import asyncio
import functools
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import aiosqlite

from asyncbg.backends.base import Backend, Enqueued
from asyncbg.backends.sqlite import SQLiteBackend
from asyncbg.bus import EventBus, Handler, Subscription
from asyncbg.clock import Clock, SystemClock
from asyncbg.database import Database
from asyncbg.errors import (
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    NotRunningError,
    OverloadedError,
    SettingsError,
    TransactionError,
)
from asyncbg.event import Event, EventFilter, EventType
from asyncbg.ids import IdGenerator
from asyncbg.job import JobRecord, JobState, NewJob
from asyncbg.retry import RetryPolicy
from asyncbg.runner.backlog import Backlog
from asyncbg.runner.executor import Executor, in_thread
from asyncbg.runner.heartbeat import Heartbeat
from asyncbg.runner.progress import ProgressPump
from asyncbg.runner.schedule import SCHEDULE, Cron, Schedules
from asyncbg.runner.upkeep import every
from asyncbg.runner.watchdog import BlockageReport, Watchdog
from asyncbg.runner.worker import Worker
from asyncbg.settings import Settings, load_settings
from asyncbg.task import Registry, TaskDefinition, TaskOptions, unwrap_partial

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("asyncbg")

ANONYMOUS = "anonymous"
_TAIL_S = 0.1
_RENEW_S = 0.5  # a cancel by another process is noticed then
_TICK_S = 0.1
_PURGE_SLICE = 500
_PAGE = 200
_HANDLERS_S = 2.0
_RECHECK_S = 0.5
_SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How one job is enqueued; None keeps the task's own choice. ``delay`` is seconds or a timedelta."""

    delay: float | timedelta | None = None
    at: datetime | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    tags: Sequence[str] = ()
    owner: str = ANONYMOUS
    fingerprint: str | None = None
    connection: aiosqlite.Connection | None = None

    def run_at_ms(self, now_ms: int) -> int:
        """When the job is due. Raises ValueError for a time without a zone."""
        if self.at is not None:
            if self.at.tzinfo is None:
                raise ValueError("at= needs a time zone, such as datetime.now(UTC) + timedelta(hours=1)")
            return max(1, int(self.at.timestamp() * 1000))
        if self.delay is None:
            return now_ms
        delay_s = self.delay.total_seconds() if isinstance(self.delay, timedelta) else self.delay
        return now_ms + max(0, int(delay_s * 1000))


_NO_OPTIONS = CallOptions()
_QUEUED = (JobState.QUEUED, JobState.QUEUED.value)
_SCHEDULED = (JobState.SCHEDULED, JobState.SCHEDULED.value)


class Job:
    """A handle on one accepted job. ``state`` is as of the last look; :meth:`refresh` looks again."""

    __slots__ = ("_engine", "batch", "created", "id", "owner", "state", "task")

    def __init__(
        self, engine: "Engine", job_id: str, *, task: str, state: JobState, batch: str, owner: str, created: bool = True
    ) -> None:
        """Made by the engine. ``created`` is False where an idempotency key matched an earlier job."""
        self._engine = engine
        self.id = job_id
        self.task = task
        self.state = state
        self.batch = batch
        self.owner = owner
        self.created = created

    def __repr__(self) -> str:
        """The id, the task and the state; never arguments."""
        return f"<Job {self.id} {self.task} {self.state}>"

    async def refresh(self) -> Self:
        """Look at the store again. Raises JobNotFoundError where the job was purged."""
        self.state = (await self._engine.get(self.id)).state
        return self

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it (as JSON gives it back).

        Raises JobFailedError, JobCancelledError, or JobTimeoutError after ``timeout`` seconds.
        """
        record = await self._engine.wait(self.id, timeout, through_pause=True)
        self.state = record.state
        match record.state:
            case JobState.SUCCEEDED:
                return json.loads(record.result or "null")
            case JobState.FAILED if record.error is not None:
                raise JobFailedError(self.id, record.error.type, record.error.message)
            case JobState.CANCELLED:
                raise JobCancelledError(self.id, record.cancel_reason or "")
            case _:
                raise JobTimeoutError(self.id, timeout or 0)

    def events(self) -> AsyncIterator[Event]:
        """The job's events from the first one to its final one, progress included."""
        return self._engine.watch(self.id)

    async def cancel(self, reason: str = "") -> JobState:
        """Cancel the job. Raises JobStateError where it is final."""
        self.state = await self._engine.cancel(self.id, reason)
        return self.state

    async def retry(self) -> JobState:
        """Run the final job again. Raises JobStateError where it is not final."""
        self.state = await self._engine.retry(self.id)
        return self.state


class Task(Generic[P, R]):
    """A registered task: ``await task(…)`` runs it here and now, ``await task.enqueue(…)`` makes a job of it."""

    def __init__(self, engine: "Engine", definition: TaskDefinition) -> None:
        """Made by ``@bg.task``."""
        self.engine = engine
        self.definition = definition
        self._plain: TaskCall[P] = TaskCall(engine, definition, _NO_OPTIONS)
        functools.update_wrapper(self, definition.function)

    @property
    def name(self) -> str:
        """The name jobs are stored under."""
        return self.definition.name

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it inline: dependencies are resolved, nothing is stored. A dependency may be given by keyword."""
        result: R = await run_inline(self.definition, args, kwargs)
        return result

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Accept a job; returns when it is on disk."""
        return await self._plain.enqueue(*args, **kwargs)

    def options(
        self,
        *,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
        tags: Sequence[str] = (),
        owner: str = ANONYMOUS,
        connection: aiosqlite.Connection | None = None,
    ) -> "TaskCall[P]":
        """The same task with options for one job. ``connection`` has an open transaction for the job to be part of."""
        options = CallOptions(
            delay=delay, at=at, priority=priority, idempotency_key=idempotency_key, tags=tuple(tags), owner=owner,
            connection=connection,
        )  # fmt: skip
        return TaskCall(self.engine, self.definition, options)


class TaskCall(Generic[P]):
    """A task with options for one job; hand it to ``add_task``, or :meth:`enqueue` it."""

    def __init__(self, engine: "Engine", definition: TaskDefinition, options: CallOptions) -> None:
        """Made by :meth:`Task.options`."""
        self.engine = engine
        self.definition = definition
        self.call_options = options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Accept a job; returns when it is on disk."""
        definition = self.definition
        bound = definition.arguments.bind(definition.name, args, kwargs)
        prepared = self.engine.prepare_bound(definition, bound, self.call_options)
        if self.call_options.connection is not None:
            return await self.engine.accept_within(self.call_options.connection, prepared)
        await self.engine.accept((prepared,))
        return prepared.job

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run it inline, as the task itself does; the options are those of a job."""
        return await run_inline(self.definition, args, kwargs)


@dataclass(slots=True)
class Prepared:
    """A job that is validated and has its id, but is not stored yet."""

    new: NewJob
    job: Job
    definition: TaskDefinition
    bound: dict[str, Any]


class _Held:
    """Functions and arguments that live only in this process: lambdas, closures, arguments without a JSON form."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[TaskDefinition, dict[str, Any]]] = {}
        self._warned: set[str] = set()

    def keep(self, prepared: Prepared) -> None:
        self._jobs[prepared.new.id] = (prepared.definition, prepared.bound)
        name = prepared.definition.name
        if name not in self._warned and len(self._warned) < 1000:
            self._warned.add(name)
            logger.warning(
                "jobs of %s are not durable: a lambda, a closure or an argument without a JSON form cannot survive a "
                "restart; hand over a module-level function and plain arguments", name,
            )  # fmt: skip

    def take(self, job_id: str) -> tuple[TaskDefinition, dict[str, Any]] | None:
        return self._jobs.get(job_id)

    def drop(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)


class Engine:
    """Everything that accepts and runs jobs in one process. Use it as ``async with``."""

    def __init__(
        self, settings: Settings | None = None, *, clock: Clock | None = None, rng: random.Random | None = None
    ) -> None:
        """Read the settings from the environment unless given. Raises SettingsError. Opens nothing yet."""
        self.settings = settings or load_settings()
        self.clock = clock or SystemClock()
        self.ids = IdGenerator(self.clock)
        self.registry = Registry()
        self.bus = EventBus(buffer=self.settings.stream.buffer)
        self.database = Database(sqlite_path(self.settings.database_url))
        self.backend: Backend = SQLiteBackend(self.database, clock=self.clock)
        self.backend.on_commit = self._committed
        self.schedules = Schedules(self.backend, self._fire, clock=self.clock)
        self._rng = rng or random.Random()  # nosec B311  # noqa: S311 - jitter, not a secret
        self._held = _Held()
        self._worker: Worker | None = None
        self._pump: ProgressPump | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._heartbeat: Heartbeat | None = None
        self._watchdog: Watchdog | None = None
        self._blockages: BlockageReport | None = None
        self._is_running = False
        self._is_paused = False
        self._backlog = Backlog(
            most=self.settings.runner.max_queued, most_per_owner=self.settings.runner.max_queued_per_owner
        )
        self._tail_behind = False

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
    ) -> "_TaskDecorator": ...
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
        value; ``at_most_once`` fails an interrupted job instead of running it again. Raises DuplicateTaskError.
        """
        options = TaskOptions(
            retry=RetryPolicy(retries=retries),
            timeout=timeout.total_seconds() if isinstance(timeout, timedelta) else timeout,
            queue=queue,
            priority=priority,
            key=key,
            at_most_once=at_most_once,
        )
        decorator = _TaskDecorator(self, name, options)
        return decorator if function is None else decorator(function)

    def schedule(self, expression: str, *, timezone: str | tzinfo = "UTC") -> "_ScheduleDecorator":
        """Run the decorated task, or function, whenever the cron expression says: ``@bg.schedule("*/5 * * * *")``.

        Once per slot, however many processes run; of the slots missed while none ran, the latest is caught up.
        ``timezone`` is a name such as ``Europe/Berlin`` or a tzinfo. Raises ScheduleError, ArgumentsError.
        """
        return _ScheduleDecorator(self, Cron.parse(expression, timezone))

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
        return self._is_running

    @property
    def is_paused(self) -> bool:
        """Whether a shutdown has begun: no more jobs are claimed."""
        return self._is_paused

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
        if self._is_running:
            raise NotRunningError("this AsyncBG runs already; enter its lifespan once")
        self._is_paused = False
        await self.backend.open()
        try:
            self.bus.start(epoch=self.backend.epoch, last_seq=(await self.backend.position()).last_seq)
            await self._recount()
            await self.schedules.start()
            self._start_loops()
        except BaseException:
            await self.stop()
            raise
        self._is_running = True

    def _start_loops(self) -> None:
        runner = self.settings.runner
        executor = Executor(threads=runner.threads, clock=self.clock, rng=self._rng)
        self._pump = ProgressPump(self.backend, self._publish_one, per_s=self.settings.stream.progress_per_s)
        self._worker = Worker(
            self.backend, self.registry, runner, executor=executor, pump=self._pump, held=self._held, clock=self.clock
        )
        self._heartbeat = Heartbeat(lambda: self.backend.beat(lease_s=runner.lease_s), period_s=runner.lease_s / 4)
        self._heartbeat.start()
        self._blockages = BlockageReport(self.backend, self._publish_one, clock=self.clock)
        if runner.watchdog_s:
            self._watchdog = Watchdog(
                limit_s=runner.watchdog_s, lease_of=self._worker.lease_of, tell=self._blockages.tell,
                note=self.backend.note,
            )  # fmt: skip
            self._watchdog.start()
        loops = self._chores(self._worker)
        self._loops = [asyncio.create_task(loop, name=f"asyncbg-{name}") for name, loop in loops.items()]
        for task in self._loops:
            task.add_done_callback(self._loop_ended)

    def _chores(self, worker: Worker) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What goes on by itself from start to stop, by name; an engine that is driven by hand has less of it."""
        runner = self.settings.runner
        return {
            "worker": worker.run(),
            "handlers": self.bus.run_handlers(),
            "schedules": every(_TICK_S, self._fire_schedules, name="the clockwork of the schedules"),
            "tail": every(_TAIL_S, self._tail, name="following the log"),
            "renewal": every(min(_RENEW_S, runner.lease_s / 4), self._renew, name="the renewal of leases"),
            "rescue": every(1.0, self._rescue, name="the rescue of lost jobs"),
            "retention": every(min(60.0, max(1.0, runner.retention_s / 4)), self._purge, name="the purge of old jobs"),
        }

    @property
    def blockages(self) -> Mapping[str, int]:
        """How often the event loop was held for longer than ``runner.watchdog_s``, by task."""
        return {} if self._watchdog is None else self._watchdog.counts

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that ends by itself is a bug of ours: say so, take no more jobs, and let readiness tell."""
        if task.cancelled() or self._is_paused:
            return
        error = task.exception()
        logger.critical("%s ended: no more jobs are accepted; restart the process", task.get_name(), exc_info=error)
        self._is_running = False

    def hold(self) -> None:
        """Claim no more jobs from this very moment on. Safe in a signal handler; :meth:`pause` is to follow."""
        self._is_paused = True
        if self._worker is not None:
            self._worker.hold()

    def pause(self) -> None:
        """Claim no more jobs; those that run get the grace period, which begins now."""
        self._is_paused = True
        if self._worker is not None:
            self._worker.pause()

    async def stop(self) -> None:
        """Claim nothing more, let running jobs end within the grace period, release the rest, close the database."""
        self._is_running = False
        self._is_paused = True
        try:
            if self._worker is not None:
                await self._worker.stop()  # the heartbeat goes on meanwhile: the leases of running jobs must hold
            if self._pump is not None:
                await self._pump.close()
            self.bus.drain()
            if self._loops:
                await self.bus.join_handlers(_HANDLERS_S)
        finally:
            self._worker = None
            if self._heartbeat is not None:
                self._heartbeat.stop()
                self._heartbeat = None
            if self._watchdog is not None:
                self._watchdog.stop()
            if self._blockages is not None:
                await self._blockages.close()
            loops, self._loops = self._loops, []
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self.backend.close()

    # Accepting

    async def enqueue(self, target: "Callable[..., Any] | Task[..., Any]", *args: Any, **kwargs: Any) -> Job:
        """Accept a job for a task or a plain function; returns when it is on disk.

        With ``connection=``, an aiosqlite connection to the same database, the job is part of the transaction that is
        open there: it exists once the caller has committed. Any other value of that name is an argument of the task.
        Raises ArgumentsError, OverloadedError, DatabaseError, NotRunningError, TransactionError.
        """
        engine = target.engine if isinstance(target, Task | TaskCall) else self
        connection = engine._take_connection(target, kwargs) if "connection" in kwargs else None
        if isinstance(target, TaskCall) and target.call_options.connection is not None:
            connection = connection or target.call_options.connection
            target = TaskCall(engine, target.definition, replace(target.call_options, connection=None))
        prepared = engine.prepare(target, args, kwargs)
        if connection is not None:
            return await engine.accept_within(connection, prepared)
        await engine.accept([prepared])
        return prepared.job

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
        prepared = self.prepare_bound(definition, bound, options)
        await self.accept([prepared])
        return prepared.job

    def prepare(
        self,
        target: "Callable[..., Any] | Task[..., Any] | TaskCall[Any]",
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        owner: str | None = None,
    ) -> Prepared:
        """Validate a call and give it an id; nothing is stored yet. Raises ArgumentsError."""
        if isinstance(target, functools.partial):
            target, args, kwargs = unwrap_partial(target, args, kwargs)
        options = target.call_options if isinstance(target, TaskCall) else _NO_OPTIONS
        if options.connection is not None:
            raise TransactionError(
                "a job within a transaction is not added but enqueued: await task.options(connection=…).enqueue(…)"
            )
        if owner is not None and options.owner == ANONYMOUS:
            options = replace(options, owner=owner)
        definition, lasting = self._define(target)
        bound = definition.arguments.bind(definition.name, args, kwargs)
        return self.prepare_bound(definition, bound, options, lasting=lasting)

    def _define(self, target: "Callable[..., Any] | Task[..., Any] | TaskCall[Any]") -> tuple[TaskDefinition, bool]:
        """The task that is meant, and whether it has a lasting name."""
        if isinstance(target, Task | TaskCall):
            return target.definition, True
        handed = self.registry.hand_over(target)
        return handed or TaskDefinition.of(_display_name(target), target, TaskOptions()), handed is not None

    def _take_connection(self, target: Callable[..., Any], kwargs: dict[str, Any]) -> aiosqlite.Connection | None:
        """The transaction that ``connection=`` names; another value stays with a task that has such a parameter."""
        given: object = kwargs["connection"]
        if not isinstance(given, aiosqlite.Connection):
            arguments = self._define(unwrap_partial(target, (), {})[0])[0].arguments
            if "connection" in arguments.names or "connection" in arguments.injected:
                return None
            if given is not None:
                raise TransactionError(
                    f"connection= takes an aiosqlite connection, not {type(given).__name__}; "
                    "an argument of that name goes through task.enqueue(connection=…)"
                )
            given = None
        del kwargs["connection"]
        return given

    def prepare_bound(
        self, definition: TaskDefinition, bound: dict[str, Any], options: CallOptions, *, lasting: bool = True
    ) -> Prepared:
        """Give a call whose arguments are validated an id; nothing is stored yet."""
        task = definition.options
        text = definition.arguments.dump(bound) if lasting else None
        now_ms = self.clock.now_ms()
        run_at_ms = now_ms if options is _NO_OPTIONS else options.run_at_ms(now_ms)
        job_id = self.ids.new()
        state, state_text = _SCHEDULED if run_at_ms > now_ms else _QUEUED
        new = NewJob(
            job_id, definition.name, task.queue, options.owner, job_id,
            json.dumps(list(options.tags)) if options.tags else "[]", state_text,
            task.priority if options.priority is None else options.priority,
            0 if text is None else 1, 1 if task.at_most_once else 0, 0, task.retry.retries,
            text or "{}", definition.arguments.personal, now_ms, run_at_ms,
            self.backend.place if text is None else None,
            options.idempotency_key, options.fingerprint,
            None if task.key is None else _unique_key(task.key, bound), 0 if options.at is None else 1,
        )  # fmt: skip
        job = Job(self, job_id, task=definition.name, state=state, batch=job_id, owner=options.owner)
        return Prepared(new, job, definition, bound)

    async def accept(self, prepared: Sequence[Prepared], *, stop_on_failure: bool = False) -> Enqueued:
        """Store prepared jobs as one batch, to run one after another; returns when they are on disk.

        Raises NotRunningError, OverloadedError, IdempotencyError, DatabaseError; nothing is stored then.
        """
        self._require_running()
        owners = await self._admit(prepared)
        if len(prepared) > 1:
            _chain(prepared, stop_on_failure)
        for one in prepared:
            if not one.new.durable:
                self._held.keep(one)
        try:
            enqueued = await self.backend.enqueue([one.new for one in prepared])
        except BaseException:
            for one in prepared:
                self._held.drop(one.new.id)
            self._backlog.settle(len(owners), owners)
            raise
        self._backlog.settle(
            len(owners), [owner for owner, created in zip(owners, enqueued.created, strict=False) if not created]
        )
        if not all(enqueued.created):
            await self._take_earlier(prepared, enqueued)
        return enqueued

    async def _admit(self, prepared: Sequence[Prepared]) -> Sequence[str]:
        """Make room; returns for whom. A repeat of what was accepted before takes none. Raises OverloadedError."""
        owners = [one.new.owner for one in prepared]
        try:
            self._backlog.admit(owners)
        except OverloadedError:
            if not await self._are_known(prepared):
                raise
            return ()
        return owners

    async def _are_known(self, prepared: Sequence[Prepared]) -> bool:
        """Whether each was accepted before, under its idempotency key."""
        for one in prepared:
            key = one.new.idempotency_key
            if key is None or await self.backend.find_by_key(one.new.owner, key) is None:
                return False
        return True

    async def accept_within(self, connection: aiosqlite.Connection, prepared: Prepared) -> Job:
        """Store a prepared job in the transaction that is open on ``connection``; it exists once that is committed.

        Raises TransactionError, NotRunningError, OverloadedError, IdempotencyError, DatabaseError.
        """
        self._require_running()
        new, job = prepared.new, prepared.job
        if not new.durable:
            raise TransactionError(
                f"{new.task} is not durable, and only what is in the database can be rolled back; "
                "hand over a module-level function and plain arguments"
            )
        self._backlog.admit((new.owner,))
        record = None
        try:
            record = await self.backend.enqueue_within(connection, new)
        finally:
            is_new = record is not None and record.id == new.id
            self._backlog.settle(1, () if is_new else (new.owner,))
        job.id, job.state, job.batch, job.created = record.id, record.state, record.batch, is_new
        return job

    def _require_running(self) -> None:
        if not self._is_running:
            raise NotRunningError(
                "asyncbg is not running: pass FastAPI(lifespan=bg.lifespan), or use `async with bg:` in a script"
            )

    async def _take_earlier(self, prepared: Sequence[Prepared], enqueued: Enqueued) -> None:
        """Where an idempotency key matched, the handle is the earlier job's."""
        for one, job_id, created in zip(prepared, *enqueued, strict=True):
            if not created:
                self._held.drop(one.new.id)
                record = await self.get(job_id)
                job = one.job
                job.id, job.state, job.batch, job.created = record.id, record.state, record.batch, False

    # Steering and looking

    async def get(self, job_id: str) -> JobRecord:
        """One job, with the freshest progress. Raises JobNotFoundError."""
        record = await self.backend.get(job_id)
        if record is None:
            raise JobNotFoundError(job_id)
        running = self._worker.job(job_id) if self._worker is not None else None
        if running is not None and running.progress is not None and record.state is JobState.RUNNING:
            return replace(record, progress=running.progress)
        return record

    async def wait(self, job_id: str, timeout_s: float | None = None, *, through_pause: bool = False) -> JobRecord:
        """Wait for the job's final state; the latest record, final or not, when the time is over.

        At a shutdown it returns at once, so that no long poll holds the server, unless ``through_pause`` is set.
        """
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        with self.bus.expect_final(job_id) as final:
            while True:
                record = await self.get(job_id)
                left_s = _RECHECK_S if deadline_s is None else deadline_s - loop.time()
                if record.state.is_final or left_s <= 0 or (self.is_paused and not through_pause):
                    return record
                await final.wait(min(left_s, _RECHECK_S))

    async def watch(self, job_id: str) -> AsyncIterator[Event]:
        """A job's events from the first one to its final one, progress included. Raises JobNotFoundError.

        A job that was retried by hand has several final events; the last one ends it.
        """
        await self.get(job_id)
        wanted = EventFilter(jobs=frozenset({job_id}))
        reached = 0
        with self.bus.subscribe(wanted) as live:
            while True:
                live.reset()
                stored, reached = await self.backend.events(after_seq=reached, wanted=wanted, limit=_PAGE)
                for event in stored:
                    yield event
                if len(stored) == _PAGE:
                    continue
                if stored and stored[-1].is_final and (await self.get(job_id)).state.is_final:
                    return
                async for event in self._live(live, reached):
                    reached = event.seq or reached
                    yield event
                    if event.is_final:
                        return
                if live.closing:
                    return

    @staticmethod
    async def _live(live: Subscription, reached: int) -> AsyncIterator[Event]:
        """What is published after ``reached``, until the subscriber lags or the bus closes."""
        while not live.lagging:
            for event in live.take():
                if not event.seq or event.seq > reached:
                    yield event
            if live.closing:
                return
            await live.wait()

    async def cancel(self, job_id: str, reason: str = "") -> JobState:
        """Cancel a job: at once if it does not run yet, through its coroutine if it does.

        Raises JobNotFoundError, JobStateError.
        """
        state = await self.backend.cancel(job_id, reason)
        if state is JobState.RUNNING and self._worker is not None:
            self._worker.cancel(job_id, reason)
        else:
            self._held.drop(job_id)
        return state

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again; its history stays. Raises JobNotFoundError, JobStateError."""
        return await self.backend.retry(job_id)

    # Telling

    def _committed(self, events: Sequence[Event]) -> None:
        """Publish our own commit; where another process committed in between, let the tail tell both in order."""
        if events[0].seq == self.bus.last_seq + 1:
            self.bus.publish(events)
        else:
            self._tail_behind = True
        self._backlog.follow(events)
        self._wake_for(events)

    def _wake_for(self, events: Iterable[Event]) -> None:
        if self._worker is not None:
            for event in events:
                if event.type in _WAKING:
                    self._worker.wake()
                    return

    def _publish_one(self, event: Event) -> None:
        self.bus.publish([event])

    async def _tail(self) -> None:
        """Follow the log: events that other processes committed reach this one's bus, and its worker."""
        while True:
            position = await self.backend.position()
            if position.last_seq <= self.bus.last_seq:
                return
            events, reached = await self.backend.events(
                after_seq=self.bus.last_seq, wanted=EventFilter(), limit=1000, up_to_seq=position.last_seq
            )
            fresh = [event for event in events if event.seq > self.bus.last_seq]
            self.bus.publish(fresh)
            self.bus.last_seq = max(self.bus.last_seq, reached)
            self._wake_for(fresh)

    # Chores

    async def _renew(self) -> None:
        if self._worker is None:
            return
        self._worker.recheck_skipped()
        known = self._worker.job_ids
        if self._worker.is_idle:
            return
        alive = await self.backend.renew(lease_s=self.settings.runner.lease_s)
        for job_id, reason in alive.items():
            if reason is not None:
                self._worker.cancel(job_id, reason)
        self._worker.lapse(known - set(alive))

    async def _fire_schedules(self) -> None:
        if self._is_running:
            await self.schedules.tick()

    async def _fire(self, schedule: str, task: str, slot_ms: int) -> None:
        """Store the job of one slot, unless another process was first."""
        definition = self.registry.get(task)
        options = CallOptions(idempotency_key=f"{SCHEDULE}/{task}/{slot_ms}", tags=(SCHEDULE,), owner=SCHEDULE)
        prepared = self.prepare_bound(definition, definition.arguments.bind(task, (), {}), options)
        self._backlog.admit((SCHEDULE,))
        stored = False
        try:
            stored = await self.backend.fire(schedule, slot_ms, prepared.new)
        finally:
            self._backlog.settle(1, () if stored else (SCHEDULE,))

    async def _rescue(self) -> None:
        if await self.backend.follow_clock() and self._worker is not None:
            logger.warning("the wall clock has jumped: delays and retries move along, leases never depended on it")
            self._worker.wake()
        if await self.backend.rescue() and self._worker is not None:
            self._worker.wake()
        await self._recount()

    async def _recount(self) -> None:
        mark = self._backlog.mark()
        if self._backlog.counts_owners:
            self._backlog.recount(await self.backend.waiting_by_owner(), mark)
        else:
            counts = await self.backend.counts()
            waiting = sum(many for state, many in counts.items() if state is not JobState.RUNNING)
            self._backlog.recount({"": waiting}, mark)

    async def _purge(self) -> None:
        before_ms = self.clock.now_ms() - int(self.settings.runner.retention_s * 1000)
        purged = _PURGE_SLICE
        while purged == _PURGE_SLICE:
            purged = await self.backend.purge(before_ms=before_ms, limit=_PURGE_SLICE)


class _TaskDecorator:
    """``@bg.task(…)`` with its options, typed for coroutine functions and plain ones."""

    def __init__(self, engine: Engine, name: str | None, options: TaskOptions) -> None:
        self._engine = engine
        self._name = name
        self._options = options

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        definition = TaskDefinition.of(self._name or function.__name__, _below(function), self._options)
        self._engine.registry.add(definition)
        if isinstance(function, Task):
            self._engine.schedules.rename(function.name, definition.name)
        return Task(self._engine, definition)


class _ScheduleDecorator:
    """``@bg.schedule(…)``: registers a plain function as a task first; goes above or below ``@bg.task``."""

    def __init__(self, engine: Engine, cron: Cron) -> None:
        self._engine = engine
        self._cron = cron

    @overload
    def __call__(self, function: Task[P, R]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        task = function if isinstance(function, Task) else self._engine.task(function)
        task.definition.arguments.bind(task.name, (), {})  # nobody is there to give it any
        task.engine.schedules.add(task.name, self._cron)
        return task


_WAKING = frozenset({EventType.QUEUED.value, EventType.SCHEDULED.value, EventType.RETRYING.value})


async def run_inline(definition: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a task here and now, its dependencies resolved unless given by keyword."""
    bound = definition.arguments.bind(definition.name, args, kwargs)
    async with definition.arguments.dependencies.resolved(bound) as supplied:
        return await _call(definition, {**supplied, **bound})


async def _call(definition: TaskDefinition, bound: Mapping[str, Any]) -> Any:
    args, kwargs = definition.arguments.spread(bound)
    if definition.is_async:
        return await definition.function(*args, **kwargs)
    return await in_thread(definition.function, args, kwargs, None)


def _below(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a task that is decorated again, as by ``@bg.task`` above ``@bg.schedule``."""
    return function.definition.function if isinstance(function, Task) else function


def sqlite_path(url: str) -> str:
    """The file of a ``sqlite:///`` URL. Raises SettingsError for another kind of database."""
    if not url.startswith(_SQLITE):
        raise SettingsError(
            "ASYNCBG_DATABASE_URL: only sqlite:/// is supported by this version; PostgreSQL comes later"
        )
    return url.removeprefix(_SQLITE)


def _chain(prepared: Sequence[Prepared], stop_on_failure: bool) -> None:
    """Make one batch of the jobs: named by the first, each waiting for the one before it."""
    batch = prepared[0].new.id
    for position, one in enumerate(prepared):
        state = one.new.state if position == 0 else JobState.WAITING.value
        one.new = one.new._replace(batch=batch, state=state, stop_on_failure=int(stop_on_failure))
        one.job.batch, one.job.state = batch, JobState(state)


def _unique_key(key: str | Callable[..., str], bound: Mapping[str, Any]) -> str:
    return key.format(**bound) if isinstance(key, str) else str(key(**bound))


def _display_name(function: Callable[..., Any]) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', '?')}:{named.__qualname__}"
