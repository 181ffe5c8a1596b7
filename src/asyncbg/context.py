"""What a task sees of its job while it runs: the current job, its progress, its injected dependencies."""

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar, cast, get_type_hints

import fastapi.params
import uncalled_for
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool

from asyncbg.errors import NotRunningError
from asyncbg.event import dump
from asyncbg.event_model import RESERVED_PREFIXES, EventModel
from asyncbg.job import Lease, ProgressValue

T = TypeVar("T")
_NOTHING = (0, None, "", "")
_current: ContextVar["CurrentJob | None"] = ContextVar("asyncbg_current_job", default=None)


class Reporter(Protocol):
    """Where a running job's words go: the runner."""

    def progress_changed(self, job: "CurrentJob") -> None:
        """Publish and keep ``job.progress`` soon; called on the event loop, at most once until it is taken."""
        ...

    async def publish(self, job: "CurrentJob", event_type: str, data: str) -> None:
        """Store and publish an event of the task's own."""
        ...


class Cancellation:
    """Whether an attempt was told to stop: by a cancel, its timeout or a shutdown. True in a condition once it was.

    Safe from any thread: ``while not current_job().cancelled: …``.
    """

    __slots__ = ("_event", "_is_set", "_was_seen", "reason")
    _making = threading.Lock()

    def __init__(self) -> None:
        """Nobody said anything yet."""
        self.reason = ""
        """Why, in the words of whoever cancelled."""
        self._is_set = False
        self._was_seen = False
        self._event: threading.Event | None = None

    def __bool__(self) -> bool:
        """Whether it is time to stop."""
        if self._is_set:
            self._was_seen = True
        return self._is_set

    @property
    def was_seen(self) -> bool:
        """Whether the task has looked since it was told."""
        return self._was_seen

    def raise_if_cancelled(self) -> None:
        """Raise ``asyncio.CancelledError`` if it is time to stop."""
        if self:
            raise asyncio.CancelledError(self.reason)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait in a thread until it is time to stop, at most ``timeout`` seconds; whether it is."""
        with self._making:
            event = self._event = self._event or threading.Event()
        if not self._is_set:
            event.wait(timeout)
        return bool(self)

    def set(self, reason: str) -> None:
        """Tell the task to stop. Called by the runner."""
        self.reason = reason
        self._is_set = True
        with self._making:
            event = self._event
        if event is not None:
            event.set()


class CurrentJob:
    """The job that is running here. Get it with :func:`current_job`."""

    __slots__ = ("_lease", "_loop", "_reporter", "_thread", "_told", "cancelled", "changed", "now_ms", "reported_s")

    def __init__(self, lease: Lease, reporter: Reporter, now_ms: Callable[[], int]) -> None:
        """Bind a claimed job to the runner that runs it."""
        self.now_ms = now_ms
        self._lease = lease
        self._reporter = reporter
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._told: tuple[float, float | None, str, str] | None = None
        self.changed = False
        self.reported_s = 0.0
        self.cancelled = Cancellation()
        """Whether this attempt was told to stop; for a plain ``def`` to look at, since no thread can be interrupted."""

    @property
    def lease(self) -> Lease:
        """The claim this attempt runs under."""
        return self._lease

    @property
    def id(self) -> str:
        """The job's id; the same over all attempts, so good as an idempotency key towards others."""
        return self._lease.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self._lease.task

    @property
    def owner(self) -> str:
        """Who submitted the job."""
        return self._lease.owner

    @property
    def batch(self) -> str:
        """The batch, named by its first job."""
        return self._lease.batch

    @property
    def attempt(self) -> int:
        """Which attempt this is; 1 is the first."""
        return self._lease.attempt

    @property
    def max_attempts(self) -> int:
        """How many attempts are allowed; in the last one an error is final."""
        return self._lease.max_attempts

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags the job was submitted with."""
        return tuple(json.loads(self._lease.tags))

    async def publish(self, event: str | EventModel, data: Mapping[str, Any] | None = None) -> None:
        """Store an event of the task's own and publish it once it is on disk: a class' instance, or a name and data.

        ``data`` must have a JSON form and should hold no personal data: streams and logs carry it as it is.
        Names beginning with ``job.``, ``stream.`` or ``loop.`` are the engine's: ValueError.
        """
        if not isinstance(event, EventModel):
            name, told = event, dict(data or {})
        elif data is None:
            name, told = event.event_type, event.model_dump(mode="json")
        else:
            raise TypeError(f"{type(event).__name__} holds its data itself; give none beside it")
        if name.startswith(RESERVED_PREFIXES) or not name.replace(".", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} is no name for an event of a task; use noun.verb, such as email.sent")
        await self._reporter.publish(self, name, dump(told))

    @property
    def progress(self) -> ProgressValue | None:
        """The latest report; made into a value here, since far more is reported than looked at."""
        if self._told is None:
            return None
        current, total, message, unit = self._told
        return ProgressValue(current=current, total=total, message=message, unit=unit)

    def report(
        self, current: float, total: float | None = None, message: str | None = None, unit: str | None = None
    ) -> None:
        """Set the progress; what is left out keeps its value. Cheap, never blocks, safe from the worker thread."""
        _, old_total, old_message, old_unit = self._told or _NOTHING
        self._told = (
            current,
            old_total if total is None else total,
            old_message if message is None else message,
            old_unit if unit is None else unit,
        )
        if not self.changed:
            self._tell()

    def advance(self, n: float) -> None:
        """Add ``n`` to what is done."""
        self.report((self._told or _NOTHING)[0] + n)

    def _tell(self) -> None:
        self.changed = True
        if self._loop is None:
            self.bind_loop()
        if threading.get_ident() == self._thread:
            self._reporter.progress_changed(self)
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._reporter.progress_changed, self)

    def bind_loop(self) -> None:
        """Remember the event loop, before a worker thread reports from outside it."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()


def current_job() -> CurrentJob:
    """The job that runs here. Raises NotRunningError outside a job (also when a task is awaited inline)."""
    job = _current.get()
    if job is None:
        raise NotRunningError("no job runs here: current_job() works inside a task that asyncbg runs")
    return job


def enter(job: CurrentJob) -> None:
    """Make ``job`` the current one for the rest of this asyncio task (whose context is its own)."""
    _current.set(job)


class Progress:
    """How a task tells how far it is. Declare it as a parameter: ``progress: Progress = Progress()``.

    Reports are coalesced: call it as often as you like. Where no job runs (the task is awaited inline, or called in
    a unit test) it keeps quiet.
    """

    def set(
        self, current: float, total: float | None = None, message: str | None = None, unit: str | None = None
    ) -> None:
        """Set how far the job is. What is left out keeps its value."""
        job = _current.get()
        if job is not None:
            job.report(current, total, message, unit)

    def advance(self, n: float = 1) -> None:
        """Add ``n`` to what is done."""
        job = _current.get()
        if job is not None:
            job.advance(n)

    async def track(self, items: AsyncIterable[T], total: float | None = None) -> AsyncIterator[T]:
        """Go through ``items`` and count each when the loop's body is done with it."""
        self.set(0, total=total)
        async for item in items:
            yield item
            self.advance()


def Depends(provider: Callable[..., Any]) -> Any:  # noqa: N802 - the field's own word
    """Inject what ``provider`` gives: resolved when the task runs, closed after it. FastAPI's ``Depends`` works too.

    ``provider`` is a function, a coroutine function or a generator of either kind (the part after ``yield`` runs when
    the task is over), and may have ``Depends`` parameters itself.
    """
    return uncalled_for.Depends(adapt(provider))


def provider_of(parameter: inspect.Parameter) -> Any | None:
    """The dependency that a parameter declares (as uncalled-for's object), in its default or its annotation."""
    default, annotation = parameter.default, parameter.annotation
    if isinstance(default, uncalled_for.Dependency):
        return default
    for item in (default, *getattr(annotation, "__metadata__", ())):
        if isinstance(item, fastapi.params.Depends):
            itself = annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation
            return uncalled_for.Depends(adapt(item.dependency or itself))
        if isinstance(item, uncalled_for.Provider):
            return item
    return None


class Dependencies:
    """What a function's parameters depend on: resolved when its job runs, closed after it."""

    def __init__(self, signature: inspect.Signature) -> None:
        """Read a signature whose annotations are resolved."""
        found = {name: provider_of(parameter) for name, parameter in signature.parameters.items()}
        self.names = frozenset(name for name, dependency in found.items() if dependency is not None)
        """The parameters that are supplied."""
        self.unmet = {name: missing for name in self.names if (missing := _unmet(found[name])) is not None}
        """Those whose provider needs what only a request has, such as ``request``, and what that is."""

        def stub() -> None: ...

        stub.__signature__ = _declared(signature, found)  # type: ignore[attr-defined]
        self._stub = stub

    @asynccontextmanager
    async def resolved(self, given: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Resolve what is not ``given`` by name; it is closed when the block ends. A provider's error is raised."""
        if not self.names:
            yield {}
            return
        async with uncalled_for.resolved_dependencies(self._stub, dict(given)) as values:
            for value in values.values():
                if isinstance(value, uncalled_for.FailedDependency):
                    raise value.error
            yield values


@lru_cache(maxsize=1024)
def adapt(provider: Callable[..., Any]) -> Callable[..., Any]:
    """``provider`` as uncalled-for calls it: a generator as a context manager, a plain ``def`` in a worker thread,
    FastAPI's ``Depends`` as its own.
    """  # fmt: skip
    signature = signature_of(provider)
    found = {name: dependency_of for name, p in signature.parameters.items() if (dependency_of := provider_of(p))}
    enter = _entered(provider)
    if enter is provider and not found:
        return provider

    def adapted(*args: Any, **kwargs: Any) -> Any:
        return enter(*args, **kwargs)

    adapted.__signature__ = _declared(signature, found)  # type: ignore[attr-defined]
    adapted.__qualname__ = getattr(provider, "__qualname__", type(provider).__qualname__)
    return adapted


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with its annotations resolved, each by itself: what names nothing known counts as Any.

    A builtin that tells no signature takes anything.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return _ANYTHING
    scope = getattr(inspect.unwrap(_body(function)), "__globals__", {})
    return signature.replace(
        parameters=[
            parameter.replace(annotation=_evaluated(parameter.annotation, scope))
            for parameter in signature.parameters.values()
        ]
    )


_ANYTHING = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL, annotation=Any),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD, annotation=Any),
    ]
)


def _evaluated(annotation: Any, scope: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return get_type_hints(_Hinted(annotation), globalns=scope, include_extras=True)["it"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any if isinstance(annotation, str) else annotation


class _Hinted:
    """An object with one annotation, for ``typing.get_type_hints`` to evaluate."""

    def __init__(self, annotation: Any) -> None:
        self.__annotations__ = {"it": annotation}


def _declared(signature: inspect.Signature, found: Mapping[str, Any]) -> inspect.Signature:
    """The signature with dependencies as keyword-only defaults: one may stand before a parameter without a default."""
    parameters = [
        parameter.replace(default=found[name], kind=inspect.Parameter.KEYWORD_ONLY)
        if found.get(name) is not None
        else parameter
        for name, parameter in signature.parameters.items()
    ]
    return signature.replace(parameters=sorted(parameters, key=lambda parameter: parameter.kind))


def _unmet(dependency: Any) -> str | None:
    """The first parameter, here or below, that nothing supplies."""
    factory = getattr(dependency, "factory", None)
    if factory is None:
        return None
    bindings = getattr(dependency, "bindings", {})
    for name, parameter in signature_of(factory).parameters.items():
        below = provider_of(parameter)
        if below is not None and name not in bindings:
            missing = _unmet(below)
            if missing is not None:
                return missing
        elif (
            name not in bindings
            and parameter.default is inspect.Parameter.empty
            and parameter.kind not in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        ):
            return name
    return None


def _entered(provider: Callable[..., Any]) -> Callable[..., Any]:
    """What uncalled-for can call on the event loop and enter or await, in place of ``provider``."""
    body = _body(provider)
    if inspect.isasyncgenfunction(body):
        return asynccontextmanager(provider)
    if inspect.isgeneratorfunction(body):
        make = contextmanager(provider)
        return lambda *args, **kwargs: contextmanager_in_threadpool(make(*args, **kwargs))
    inner = inspect.unwrap(body)
    if inspect.isclass(provider) or inspect.iscoroutinefunction(body) or inner is not body:
        return provider

    async def threaded(*args: Any, **kwargs: Any) -> Any:
        value = await run_in_threadpool(provider, *args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return threaded


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """What runs when ``function`` is called: below partials, ``__call__`` of an object, ``__init__`` of a class."""
    while isinstance(function, partial):
        function = function.func
    if inspect.isclass(function):
        return cast("Callable[..., Any]", function.__init__)
    if inspect.isroutine(function):
        return function
    return cast("Callable[..., Any]", getattr(function, "__call__", function))  # noqa: B004 - the method itself
