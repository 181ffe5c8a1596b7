"""The FastAPI integration: ``AsyncBG`` with its lifespan and router, and ``BackgroundTasks`` that enqueues jobs."""

import asyncio
import hashlib
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, overload

import fastapi
from fastapi import APIRouter, Depends
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteBackgroundTasks
from starlette.requests import HTTPConnection

from asyncbg.auth.audit import Audit
from asyncbg.auth.caller import get_caller
from asyncbg.auth.tickets import Tickets
from asyncbg.core.clock import Clock
from asyncbg.core.engine_events import ENGINE_EVENTS
from asyncbg.core.error_log import ErrorLog
from asyncbg.core.event_model import EventModel, Vocabulary
from asyncbg.core.job import NewJob
from asyncbg.core.stored_text import require_line
from asyncbg.engine import Engine, Enqueuer, Job, PreparedJob
from asyncbg.engine.registry import unwrap_partial
from asyncbg.engine.target import enqueuer_of, prepare_target
from asyncbg.errors import (
    AsyncBGError,
    DatabaseError,
    IdempotencyError,
    NotRunningError,
    OptionsError,
    OverloadedError,
    OversizeArgumentsError,
    UniqueKeyError,
)
from asyncbg.privacy import use_pseudonym_key
from asyncbg.privacy.log_redaction import redact_handlers, redact_own_loggers
from asyncbg.settings import Settings, load_engine_settings
from asyncbg.signals import chain_signals
from asyncbg.streams.streams import Streams
from asyncbg.web.access_log import redact_library_path
from asyncbg.web.assets import assets_router
from asyncbg.web.asyncapi import asyncapi_router
from asyncbg.web.engine_router import EngineRouter
from asyncbg.web.event_schema import EventSchemas
from asyncbg.web.events import events_router, ticket_router
from asyncbg.web.jobs import jobs_router
from asyncbg.web.operations import operations_router
from asyncbg.web.problems import http_exception_for

P = ParamSpec("P")
App = TypeVar("App", bound=Starlette)
Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]

logger = logging.getLogger("asyncbg")
_STATE = "asyncbg"
_KEY_SEPARATOR = "\x1f"
"""Separates an idempotency key from the number of a job. No header can contain it, so keys cannot collide."""


class _Added(BackgroundTask):
    """A task in the container, with its prepared job."""

    def __init__(  # args and kwargs are the function's own: they may have any name, so they are not expanded
        self,
        enqueuer: Enqueuer,
        prepared: PreparedJob,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__(func)
        self.args, self.kwargs = tuple(args), kwargs  # type: ignore[assignment]  # Starlette names a ParamSpec
        self.enqueuer = enqueuer
        self.prepared = prepared


class JobBackgroundTasks(fastapi.BackgroundTasks):
    """The value of a route's parameter of type :data:`BackgroundTasks`.

    In a request, added tasks become jobs: one batch, committed after the route returned and before the response
    starts. Outside a request it works as FastAPI's class: ``await tasks()`` runs the tasks in order.
    """

    def __init__(
        self,
        tasks: Sequence[BackgroundTask] | None = None,
        *,
        engine: Engine | None = None,
        owner: str | None = None,
    ) -> None:
        """``engine`` and ``owner`` are set by the dependency."""
        super().__init__(tasks)
        self.owner = owner
        """The owner of jobs added from now on: the authenticated caller unless you set it; None means ``anonymous``."""
        self.stop_on_failure = False
        """Whether a job that does not succeed cancels the jobs added after it."""
        self.idempotency_key: str | None = None
        """Deduplicates requests: a repeat returns the jobs of the first. Set it before the first commit, from a header
        for instance. The commit raises IdempotencyError if a repeat has other jobs or arguments."""
        self.fingerprint: str | None = None
        """Identifies the content of the request, where the arguments are not enough."""
        self._engine = engine
        self._committed: dict[int, BackgroundTask] = {}
        self._keyed = 0
        self._open_loop: asyncio.AbstractEventLoop | None = None
        self._late: set[asyncio.Task[None]] = set()

    def add_task(self, /, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Job:  # type: ignore[override]
        """Add a job: a task, a task with ``options(…)``, or any function. Return its handle.

        Raise ArgumentsError if the arguments do not match the signature.
        """
        if self._engine is None:
            super().add_task(func, *args, **kwargs)
            return None  # type: ignore[return-value]  # as Starlette does: outside a request there is no job
        added = self._prepare(self._engine, func, args, kwargs)
        self.tasks.append(added)
        if self._open_loop is not None:
            self._open_loop.call_soon_threadsafe(self._commit_late)
        return added.prepared.job

    async def __call__(self) -> None:
        """Run the added tasks, as Starlette does. In a request, commit them as jobs instead."""
        if self._engine is None:
            await super().__call__()
        else:
            await self.commit()

    async def commit(self) -> None:
        """Store the jobs added since the last commit as one batch. Called automatically when the route returns.

        A long-running WebSocket route calls it itself. Raise OverloadedError, IdempotencyError, DatabaseError,
        NotRunningError.
        """
        if self._engine is None:
            return
        fresh = [task for task in self.tasks if id(task) not in self._committed]
        batches: dict[Enqueuer, list[PreparedJob]] = {}
        for added in self._jobs(self._engine, fresh):
            batches.setdefault(added.enqueuer, []).append(added.prepared)
        self._committed.update((id(task), task) for task in fresh)
        for enqueuer, prepared in batches.items():
            if self.idempotency_key is not None:
                require_line("idempotency_key", self.idempotency_key)
                self._assign_keys(prepared, self.idempotency_key)
            await enqueuer.accept(prepared, stop_on_failure=self.stop_on_failure)

    def _assign_keys(self, prepared: Sequence[PreparedJob], key: str) -> None:
        """Set the idempotency keys: the first job gets the key itself, each later one the key and its number."""
        for one in prepared:
            number, self._keyed = self._keyed, self._keyed + 1
            if one.new.idempotency_key is None:
                one.new = one.new._replace(
                    idempotency_key=f"{key}{_KEY_SEPARATOR}{number}" if number else key,
                    fingerprint=self.fingerprint or _fingerprint(one.new),
                )

    def _commit_late_additions(self) -> None:
        """Commit each job that is added from now on at once: the response has started."""
        self._open_loop = asyncio.get_running_loop()

    def _commit_late(self) -> None:
        task = asyncio.create_task(self._commit_or_log(), name="asyncbg-late-commit")
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _commit_or_log(self) -> None:
        try:
            await self.commit()
        except AsyncBGError as error:
            logger.error("jobs added after the response had started are lost: %s", error)
        except Exception as error:  # noqa: BLE001 - there is no caller to raise to
            message = "jobs added after the response had started are lost"
            (self._engine._parts.errors if self._engine else ErrorLog()).add("late commit", error, message)

    def _jobs(self, engine: Engine, tasks: Iterable[BackgroundTask]) -> Iterator[_Added]:
        """Yield the jobs of all tasks, including those appended to the list directly."""
        used: set[int] = set()
        for task in tasks:
            if isinstance(task, StarletteBackgroundTasks):
                yield from self._jobs(engine, task.tasks)
            elif isinstance(task, _Added) and id(task) not in used:
                used.add(id(task))
                yield task
            elif type(task) in {BackgroundTask, _Added}:
                yield self._prepare(engine, task.func, task.args, task.kwargs)
            else:
                yield self._prepare(engine, task, (), {})

    def _prepare(
        self, engine: Engine, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> _Added:
        """Prepare a job: a task's in its own engine, any other function's in that of this application."""
        target, _, _ = unwrap_partial(func, args, kwargs)
        enqueuer = enqueuer_of(target, engine._parts.enqueuer)
        prepared = prepare_target(enqueuer, func, args, kwargs, owner=self.owner)
        return _Added(enqueuer, prepared, func, args, dict(kwargs))


def _fingerprint(job: NewJob) -> str:
    return hashlib.sha256(f"{job.task}\n{job.args}".encode()).hexdigest()


def engine_of(connection: HTTPConnection) -> Engine:
    """Return the engine whose lifespan runs in the application of ``connection``. Raise NotRunningError."""
    engine = getattr(connection.app.state, _STATE, None)
    if not isinstance(engine, Engine):
        raise NotRunningError(
            "asyncbg is not running in this application: pass FastAPI(lifespan=bg.lifespan); in a test enter the "
            "client, `with TestClient(app) as client:`; for an application mounted later set `sub.state.asyncbg = bg`"
        )
    return engine


def committing(find: Callable[[HTTPConnection], Engine]) -> Callable[..., AsyncIterator[JobBackgroundTasks]]:
    """Return the dependency that provides :class:`JobBackgroundTasks` for the engine that ``find`` returns."""

    async def committed(connection: HTTPConnection) -> AsyncIterator[JobBackgroundTasks]:
        caller = get_caller(connection)
        tasks = JobBackgroundTasks(engine=find(connection), owner=caller.owner if caller else None)
        try:
            yield tasks
        except (OptionsError, OversizeArgumentsError, UniqueKeyError) as error:
            raise _http_error(connection, error) from error
        try:
            await tasks.commit()
        except AsyncBGError as error:
            raise _http_error(connection, error) from error
        tasks._commit_late_additions()

    return committed


_ANSWERED = (
    OverloadedError, DatabaseError, NotRunningError, IdempotencyError,
    OptionsError, UniqueKeyError, OversizeArgumentsError,
)  # fmt: skip
"""Errors that the load or the request causes; any other is an error of the application and is raised unchanged."""


def _http_error(connection: HTTPConnection, error: AsyncBGError) -> Exception:
    """Return what to raise: ``error`` where the application has a handler for it, else an HTTPException."""
    handlers, _ = connection.scope.get("starlette.exception_handlers", ({}, {}))
    is_handled = any(kind in handlers for kind in type(error).__mro__)
    if connection.scope["type"] != "http" or is_handled or not isinstance(error, _ANSWERED):
        return error
    return http_exception_for(error)


BackgroundTasks: TypeAlias = Annotated[JobBackgroundTasks, Depends(committing(engine_of), scope="function")]
"""The drop-in type: ``background_tasks: BackgroundTasks``. Its jobs are on disk before the response starts."""


async def _shared(background_tasks: BackgroundTasks) -> JobBackgroundTasks:
    return background_tasks


RequestBackgroundTasks: TypeAlias = Annotated[JobBackgroundTasks, Depends(_shared)]
"""The same container for a dependency with ``yield`` that ends after the response: one of scope "request" cannot use
one of scope "function" directly. Jobs added after the response has started are committed at once."""


class AsyncBG(Engine):
    """The engine for a FastAPI application: ``FastAPI(lifespan=bg.lifespan)``, ``app.include_router(bg.router)``."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Clock | None = None,
        events: Iterable[type[EventModel]] = (),
        **overrides: Any,
    ) -> None:
        """Read the settings from ``ASYNCBG_*`` unless given; keywords override single settings: ``database_url=…``.

        ``events`` are the classes of events that your tasks publish, for the OpenAPI and AsyncAPI documents.
        """
        super().__init__(settings or load_engine_settings(**overrides), clock=clock)
        privacy = self.settings.privacy
        if privacy.pseudonym_key:
            use_pseudonym_key(privacy.pseudonym_key.get_secret_value().encode())
        redact_own_loggers(mask=privacy.mask)
        self._streams = Streams(self)
        self._event_schemas = EventSchemas(Vocabulary.of([*ENGINE_EVENTS, *events]))
        self._audit = Audit(self._parts.database, clock=self.clock)
        self._tickets = Tickets(
            self._parts.database, clock=self.clock, epoch=lambda: self._parts.backend.epoch, audit=self._audit
        )
        self._store_openers += [self._audit.open, self._tickets.open]
        self._router: EngineRouter | None = None
        self.provide = committing(lambda _: self)
        """The dependency for several engines in one application:
        ``Annotated[JobBackgroundTasks, Depends(bg.provide, scope="function")]``."""

    @property
    def router(self) -> "EngineRouter":
        """The router of jobs, events, health, metrics and the start page; include it under a prefix of your choice.

        ``bg.router`` serves loopback clients only, refuses cross-site requests, and answers health probes.
        ``bg.router(auth=current_user)`` authenticates by your dependency, which returns the owner.
        ``bg.router(auth=None)`` is open to all clients.
        """
        if self._router is None:
            routes = APIRouter()
            routes.include_router(operations_router(self))
            routes.include_router(jobs_router(self, self._audit))
            routes.include_router(events_router(self._streams, self._event_schemas, self._tickets))
            routes.include_router(asyncapi_router(self._event_schemas))
            routes.include_router(assets_router())
            self._router = EngineRouter(routes, ticket_router(self._streams, self._event_schemas, self._tickets))
        return self._router

    def _abandon(self) -> None:
        """Drop all state that belongs to a closed event loop, including the streams."""
        super()._abandon()
        self._streams.abandon()

    @overload
    def lifespan(self, target: Starlette, /) -> AbstractAsyncContextManager[None]: ...
    @overload
    def lifespan(self, target: Lifespan | Callable[[Any], AsyncIterator[Any]], /) -> Lifespan: ...
    def lifespan(self, target: Any, /) -> Any:
        """The lifespan for FastAPI. ``bg.lifespan(other)`` wraps your own, which starts before it and ends after it.

        So every task can use what your lifespan opens, including tasks recovered from an earlier process.
        """
        if isinstance(target, Starlette):
            return self._lifespan(target, None)
        other = asynccontextmanager(target) if inspect.isasyncgenfunction(target) else target
        return lambda app: self._lifespan(app, other)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette, other: Lifespan | None) -> AsyncIterator[Mapping[str, Any] | None]:
        if other is None:
            with self._redacted_logging():
                async with self._handling_signals(), self, self._registered_in(app):
                    yield None
        else:
            async with other(app) as state:
                with self._redacted_logging():
                    async with self._handling_signals(), self, self._registered_in(app):
                        yield state

    @contextmanager
    def _redacted_logging(self) -> Iterator[None]:
        """Redact personal data in uvicorn's access log of our routes, and in all logs if configured."""
        privacy = self.settings.privacy
        if privacy.mask:
            logging.getLogger("uvicorn.access").addFilter(redact_library_path)  # the same one is not added twice
        restore = redact_handlers(mask=privacy.mask) if privacy.redact_logs else lambda: None
        try:
            yield
        finally:
            restore()

    @asynccontextmanager
    async def _handling_signals(self) -> AsyncIterator[None]:
        """Handle SIGTERM and SIGINT: the first starts a graceful shutdown, a second ends the process at once."""
        restore = chain_signals(self._parts.runner.stop_claiming, self._begin_shutdown)
        try:
            yield
        finally:
            restore()

    @asynccontextmanager
    async def _registered_in(self, app: Starlette) -> AsyncIterator[None]:
        """Register this engine in the application and its mounted applications; begin the shutdown on exit."""
        known = [found for found in dict.fromkeys(_applications(app)) if not hasattr(found.state, _STATE)]
        for found in known:
            setattr(found.state, _STATE, self)
        self._warn_of_access(app)
        overriding = [found for found in dict.fromkeys(_applications(app)) if isinstance(found, fastapi.FastAPI)]
        for one in overriding:
            self._parts.executor.overrides.add(one)
        try:
            yield
        finally:
            self._begin_shutdown()
            for one in overriding:
                self._parts.executor.overrides.remove(one)
            for found in known:
                if getattr(found.state, _STATE, None) is self:
                    delattr(found.state, _STATE)

    def _warn_of_access(self, app: Starlette) -> None:
        """Log at startup whether the router is open to all clients or limited to loopback clients."""
        if self._router is None:
            return
        if self._router.is_open:
            logger.warning("bg.router(auth=None) is open: any client can submit, read and cancel jobs")
        if self._router.is_included(app.routes):
            logger.warning(
                "bg.router serves loopback clients only; open it with bg.router(auth=current_user), your dependency "
                "that returns the owner, or to all clients with bg.router(auth=None)"
            )

    def _begin_shutdown(self) -> None:
        """Claim no more jobs, start the grace period and close all streams; the lifespan does the rest."""
        self._parts.runner.begin_drain()
        self._streams.drain()


def _applications(app: Any) -> list[Starlette]:
    """Return the application and those mounted in it, inside routers and middleware too."""
    found: list[Starlette] = [app] if isinstance(app, Starlette) else []
    for below in (getattr(app, "original_router", None), getattr(app, "app", None), *getattr(app, "routes", ())):
        if below is not None:
            found += _applications(below)
    return found
