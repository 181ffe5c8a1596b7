"""The drop-in: FastAPI's ``BackgroundTasks`` with jobs behind it, the lifespan, and the router to mount."""

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, overload

import fastapi
from fastapi import APIRouter, Depends
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from asyncbg.api.events import events_router
from asyncbg.api.jobs import jobs_router
from asyncbg.api.ops import ops_router
from asyncbg.api.sse import Streams
from asyncbg.background import Engine, Job, Prepared
from asyncbg.clock import Clock
from asyncbg.errors import NotRunningError
from asyncbg.settings import Settings, load_settings

P = ParamSpec("P")
App = TypeVar("App", bound=Starlette)
Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]

_STATE = "asyncbg"


class _Added(BackgroundTask):
    """A task in the container, together with the job it will be."""

    def __init__(self, prepared: Prepared, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        super().__init__(func, *args, **kwargs)
        self.prepared = prepared


class JobBackgroundTasks(fastapi.BackgroundTasks):
    """What a route gets for a parameter of type :data:`BackgroundTasks`.

    In a request, what is added becomes jobs: one batch, committed after the route returned and before the response
    starts. Outside a request it is FastAPI's own: ``await tasks()`` runs what was added, here and in order.
    """

    def __init__(self, tasks: Sequence[BackgroundTask] | None = None, *, engine: Engine | None = None) -> None:
        """Hold ``tasks``; ``engine`` is given by the dependency."""
        super().__init__(tasks)
        self.stop_on_failure = False
        """Whether a job that does not succeed cancels those added after it."""
        self._engine = engine
        self._is_committed = False

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Job:  # type: ignore[override]
        """Add a job: a task, a task with ``options(…)``, or any function. Its id is known at once.

        Raises ArgumentsError where the arguments do not fit the signature.
        """
        if self._engine is None:
            super().add_task(func, *args, **kwargs)
            return None  # type: ignore[return-value]  # as Starlette does: outside a request there is no job
        prepared = self._engine.prepare(func, args, kwargs)
        self.tasks.append(_Added(prepared, func, *args, **kwargs))
        return prepared.job

    async def __call__(self) -> None:
        """Run what was added, as Starlette does. In a request the jobs are the engine's: they are committed instead."""
        if self._engine is None:
            await super().__call__()
        else:
            await self.commit()

    async def commit(self) -> None:
        """Put the jobs on disk. Done once; called for you when the route has returned."""
        if self._engine is None or self._is_committed or not self.tasks:
            return
        prepared = [
            task.prepared if isinstance(task, _Added) else self._engine.prepare(task.func, task.args, task.kwargs)
            for task in self.tasks
        ]
        await self._engine.accept(prepared, stop_on_failure=self.stop_on_failure)
        self._is_committed = True


def engine_of(connection: HTTPConnection) -> Engine:
    """The engine whose lifespan runs in the application that serves ``connection``. Raises NotRunningError."""
    engine = getattr(connection.app.state, _STATE, None)
    if not isinstance(engine, Engine):
        raise NotRunningError(
            "asyncbg is not running in this application: pass FastAPI(lifespan=bg.lifespan); in a test enter the "
            "client, `with TestClient(app) as client:`; for an application mounted later set `sub.state.asyncbg = bg`"
        )
    return engine


async def provide(connection: HTTPConnection) -> AsyncIterator[JobBackgroundTasks]:
    """The dependency behind :data:`BackgroundTasks`: commits what was added unless the route raised."""
    tasks = JobBackgroundTasks(engine=engine_of(connection))
    yield tasks
    await tasks.commit()


BackgroundTasks: TypeAlias = Annotated[JobBackgroundTasks, Depends(provide, scope="function")]
"""The drop-in: ``background_tasks: BackgroundTasks`` in a route or a dependency. On disk before the response starts."""


RequestBackgroundTasks: TypeAlias = Annotated[JobBackgroundTasks, Depends(provide, scope="request")]
"""For a dependency that ends after the response (``yield``, scope "request"): its jobs are committed then."""


class AsyncBG(Engine):
    """The engine with its FastAPI side: ``FastAPI(lifespan=bg.lifespan)``, ``app.include_router(bg.router)``."""

    def __init__(self, settings: Settings | None = None, *, clock: Clock | None = None, **overrides: Any) -> None:
        """Read the settings from ``ASYNCBG_*`` unless given; keywords override single ones: ``database_url=…``."""
        super().__init__(settings or load_settings(**overrides), clock=clock)
        self.streams = Streams(self)
        self._router: APIRouter | None = None

    @property
    def router(self) -> APIRouter:
        """The routes of jobs, events, health, metrics and the start page, to include under a prefix of your own."""
        if self._router is None:
            self._router = APIRouter()
            self._router.include_router(ops_router(self))
            self._router.include_router(jobs_router(self))
            self._router.include_router(events_router(self, self.streams))
        return self._router

    async def provide(self) -> AsyncIterator[JobBackgroundTasks]:
        """For several engines in one app: ``Annotated[JobBackgroundTasks, Depends(bg.provide, scope="function")]``."""
        tasks = JobBackgroundTasks(engine=self)
        yield tasks
        await tasks.commit()

    @overload
    def lifespan(self, target: Starlette, /) -> AbstractAsyncContextManager[None]: ...
    @overload
    def lifespan(self, target: Lifespan, /) -> Lifespan: ...
    def lifespan(self, target: Any, /) -> Any:
        """The lifespan to give to FastAPI; ``bg.lifespan(other)`` wraps your own, which starts before and ends after.

        So what your lifespan opens is there for every task, also for those taken up from an earlier life.
        """
        if isinstance(target, Starlette):
            return self._lifespan(target, None)
        other = asynccontextmanager(target) if inspect.isasyncgenfunction(target) else target
        return lambda app: self._lifespan(app, other)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette, other: Lifespan | None) -> AsyncIterator[Mapping[str, Any] | None]:
        if other is None:
            async with self, self._serving(app):
                yield None
        else:
            async with other(app) as state, self, self._serving(app):
                yield state

    @asynccontextmanager
    async def _serving(self, app: Starlette) -> AsyncIterator[None]:
        """Make this engine known to the application and what is mounted in it; end its streams at SIGTERM."""
        known = [found for found in _applications(app) if not hasattr(found.state, _STATE)]
        for found in known:
            setattr(found.state, _STATE, self)
        restore = _chain_signals(self.begin_shutdown)
        try:
            yield
        finally:
            restore()
            self.begin_shutdown()
            for found in known:
                delattr(found.state, _STATE)

    def begin_shutdown(self) -> None:
        """Claim no more jobs and say goodbye to every stream; the lifespan's end does the rest."""
        self.pause()
        self.streams.drain()


def _applications(app: Any) -> list[Starlette]:
    """The application and those mounted in it, through middleware that wraps them."""
    while app is not None and not isinstance(app, Starlette):
        app = getattr(app, "app", None)
    if app is None:
        return []
    found: list[Starlette] = [app]
    for route in app.routes:
        if isinstance(route, Mount):
            found += _applications(route.app)
    return found


def _chain_signals(first: Callable[[], None]) -> Callable[[], None]:
    """Call ``first`` on the event loop when SIGTERM or SIGINT comes, before the server's own handler; returns the undo.

    uvicorn waits for open connections before the lifespan ends, so streams must be told by the signal itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()
    undo: list[tuple[int, Any, Any]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)

        def handle(received: int, frame: FrameType | None, previous: Any = previous) -> None:
            loop.call_soon_threadsafe(first)
            if callable(previous):
                previous(received, frame)
            elif previous == signal.SIG_DFL:
                signal.signal(received, signal.SIG_DFL)
                signal.raise_signal(received)

        signal.signal(number, handle)
        undo.append((number, handle, previous))

    def restore() -> None:
        for number, handle, previous in undo:
            if signal.getsignal(number) is handle:
                signal.signal(number, previous)

    return restore
