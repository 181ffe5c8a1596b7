"""Dependency injection: what a task's parameters depend on, resolved for each run and closed after it."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Protocol, cast, get_type_hints

import fastapi.params
import uncalled_for

from asyncbg.engine.progress import Progress, bound_progress
from asyncbg.engine.threads import Threads

Provider = Callable[..., Any]
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def Depends(provider: Provider | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - the field's own word
    """Inject what ``provider`` gives: resolved when the task runs, closed after it. FastAPI's ``Depends`` works too.

    ``provider`` is a function, a coroutine function or a generator of either kind (the part after ``yield`` runs when
    the task is over), and may have ``Depends`` parameters itself. It is called once a run, however many parameters
    depend on it, unless ``use_cache`` is False.
    """
    return fastapi.params.Depends(dependency=provider, use_cache=use_cache)


class Overriding(Protocol):
    """An application: its tests may assign another dictionary, or change the one there is."""

    dependency_overrides: dict[Provider, Provider]


class Overrides:
    """What stands in for a provider: the ``dependency_overrides`` of the applications that the engine runs in."""

    def __init__(self) -> None:
        """No application yet."""
        self._applications: list[Overriding] = []

    def __bool__(self) -> bool:
        """Whether anything is overridden now."""
        for one in self._applications:  # asked for every job, so without a generator  # noqa: SIM110
            if one.dependency_overrides:
                return True
        return False

    def add(self, application: Overriding) -> None:
        """Ask ``application`` from now on, whenever a provider is called."""
        self._applications.append(application)

    def remove(self, application: Overriding) -> None:
        """Ask ``application`` no more."""
        self._applications.remove(application)

    def find(self, provider: Provider) -> Provider:
        """What to call in place of ``provider``: itself, where no application says otherwise."""
        for one in self._applications:
            if provider in one.dependency_overrides:
                return one.dependency_overrides[provider]
        return provider


NO_OVERRIDES = Overrides()


class Dependencies:
    """What the parameters of one function depend on, read from its signature."""

    def __init__(self, signature: inspect.Signature) -> None:
        """Read a signature whose annotations are resolved."""
        self._providers: dict[str, fastapi.params.Depends] = {}
        self._foreign: dict[str, Any] = {}
        self._progress: dict[str, Progress] = {}
        self._defaults: dict[str, Any] = {}
        self._required: list[str] = []
        for parameter in signature.parameters.values():
            self._read(parameter)
        self.names = frozenset({*self._providers, *self._foreign, *self._progress})
        """The parameters that are supplied."""
        self._frame = _frame(signature, self._foreign)

    def _read(self, parameter: inspect.Parameter) -> None:
        name, default = parameter.name, parameter.default
        declared = provider_of(parameter)
        if isinstance(declared, fastapi.params.Depends):
            self._providers[name] = declared
        elif declared is not None:
            self._foreign[name] = declared
        elif isinstance(default, Progress):
            self._progress[name] = default
        elif isinstance(default, fastapi.params.Param | fastapi.params.Body):  # Query(…): a request may give it
            if default.is_required():
                self._required.append(name)
            else:
                self._defaults[name] = default.get_default(call_default_factory=True)
        elif default is inspect.Parameter.empty and parameter.kind not in _VARIADIC:
            self._required.append(name)

    @property
    def need_closing(self) -> bool:
        """Whether there is anything to close when the run is over."""
        return bool(self._providers or self._foreign)

    def progress(self) -> dict[str, Progress]:
        """The ``Progress`` parameters, each bound to the job that runs here."""
        return {name: bound_progress(default) for name, default in self._progress.items()}

    def unmet(self, overrides: Overrides = NO_OVERRIDES) -> dict[str, str]:
        """The parameters whose provider needs what only a request has, such as ``request``, and what that is."""
        found = {name: _missing(declared, overrides, ()) for name, declared in self._providers.items()}
        return {name: missing for name, missing in found.items() if missing is not None}

    @asynccontextmanager
    async def resolved(
        self, given: Mapping[str, Any], threads: Threads, overrides: Overrides = NO_OVERRIDES
    ) -> AsyncIterator[dict[str, Any]]:
        """Resolve what is not ``given`` by name; it is closed when the block ends.

        What a provider raises is raised. What the block raises is raised in any case: a provider may see it, and
        raise another error in its place, but none can make it undone.
        """
        failure: BaseException | None = None
        async with AsyncExitStack() as stack:
            try:
                run = _Run(stack, threads, overrides)
                yield await run.values_of(self, given)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:
            raise failure


class _Run:
    """One resolution: what was provided so far, and the stack that closes it."""

    def __init__(self, stack: AsyncExitStack, threads: Threads, overrides: Overrides) -> None:
        self._stack = stack
        self._threads = threads
        self._overrides = overrides
        self._cache: dict[Provider, Any] = {}
        self._open: list[Provider] = []

    async def values_of(self, needed: Dependencies, given: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(needed.progress())
        for name, declared in needed._providers.items():
            values[name] = given[name] if name in given else await self._provide(declared)
        if needed._foreign:
            values |= await self._provide_foreign(needed, {**values, **given})
        return values

    async def _provide(self, declared: fastapi.params.Depends) -> Any:
        original = cast("Provider", declared.dependency)
        if declared.use_cache and original in self._cache:
            return self._cache[original]
        provider = self._overrides.find(original)
        if provider in self._open:
            raise RecursionError(f"the provider {_name_of(provider)} depends on itself")
        self._open.append(provider)
        needed = dependencies_of(provider)
        values = {**needed._defaults, **await self.values_of(needed, {})}
        value = await self._enter(provider, partial(provider, **values))
        self._open.pop()
        self._cache.setdefault(original, value)
        return value

    async def _provide_foreign(self, needed: Dependencies, given: Mapping[str, Any]) -> dict[str, Any]:
        """What uncalled-for's own dependencies give, which see the arguments of the call."""
        frame = uncalled_for.resolved_dependencies(needed._frame, dict(given))
        values = await self._stack.enter_async_context(frame)
        for value in values.values():
            if isinstance(value, uncalled_for.FailedDependency):
                raise value.error
        return values

    async def _enter(self, provider: Provider, call: Callable[[], Any]) -> Any:
        """Call a provider; what is a generator or a context manager is entered, to be closed when the run is over."""
        body = body_of(provider)
        if inspect.isasyncgenfunction(body):
            return await self._stack.enter_async_context(asynccontextmanager(call)())
        if inspect.isgeneratorfunction(body):
            return await self._enter_in_thread(contextmanager(call)())
        value = await self._call(provider, call)
        if not _is_entered(provider):
            return value
        if isinstance(value, AbstractAsyncContextManager):
            return await self._stack.enter_async_context(value)
        return await self._enter_in_thread(value) if isinstance(value, AbstractContextManager) else value

    async def _enter_in_thread(self, manager: AbstractContextManager[Any]) -> Any:
        with _cancellation_kept():
            return await self._stack.enter_async_context(_InThread(manager, self._threads))

    async def _call(self, provider: Provider, call: Callable[[], Any]) -> Any:
        if _runs_on_loop(provider):
            value = call()
        else:
            with _cancellation_kept():
                value = await self._threads.run(call)
        return await value if inspect.isawaitable(value) else value


class _InThread(AbstractAsyncContextManager[Any, bool | None]):
    """A plain context manager, both ends of which run in a thread."""

    def __init__(self, manager: AbstractContextManager[Any], threads: Threads) -> None:
        self._manager = manager
        self._threads = threads

    async def __aenter__(self) -> Any:
        return await self._threads.run(self._manager.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return bool(await self._threads.clean_up(lambda: self._manager.__exit__(kind, error, traceback)))


@contextmanager
def _cancellation_kept() -> Iterator[None]:
    """Raise the cancellation that came while a thread was waited for: it is not lost, only later."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def provider_of(parameter: inspect.Parameter) -> fastapi.params.Depends | uncalled_for.Dependency[Any] | None:
    """The dependency that a parameter declares in its default or its annotation: FastAPI's, or uncalled-for's own."""
    default, annotation = parameter.default, parameter.annotation
    if isinstance(default, uncalled_for.Dependency):
        return default
    for item in (default, *getattr(annotation, "__metadata__", ())):
        if isinstance(item, fastapi.params.Depends):
            itself = annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation
            return fastapi.params.Depends(dependency=item.dependency or itself, use_cache=item.use_cache)
        if isinstance(item, uncalled_for.Provider):
            return item
    return None


@lru_cache(maxsize=1024)
def dependencies_of(provider: Provider) -> Dependencies:
    """What a provider itself depends on."""
    return Dependencies(signature_of(provider))


def _missing(declared: fastapi.params.Depends, overrides: Overrides, above: tuple[Provider, ...]) -> str | None:
    """The first parameter, here or below, that nothing supplies."""
    provider = overrides.find(cast("Provider", declared.dependency))
    if provider in above:
        raise RecursionError(f"the provider {_name_of(provider)} depends on itself")
    needed = dependencies_of(provider)
    below = (_missing(one, overrides, (*above, provider)) for one in needed._providers.values())
    return next((name for name in (*needed._required, *below) if name is not None), None)


def _frame(signature: inspect.Signature, foreign: Mapping[str, Any]) -> Callable[..., Any]:
    """A function whose parameters uncalled-for resolves: dependencies as keyword-only defaults, in any order."""

    def frame() -> None: ...

    parameters = [
        parameter.replace(default=foreign[name], annotation=Any, kind=inspect.Parameter.KEYWORD_ONLY)
        if name in foreign
        else parameter.replace(annotation=Any)
        for name, parameter in signature.parameters.items()
    ]
    parameters.sort(key=lambda parameter: parameter.kind)
    frame.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return frame


# What a function is


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with its annotations resolved, each by itself: what names nothing known counts as Any.

    A builtin that tells no signature takes anything.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return _ANYTHING
    scope = getattr(inspect.unwrap(body_of(function)), "__globals__", {})
    return signature.replace(
        parameters=[
            parameter.replace(annotation=_evaluated(parameter.annotation, scope))
            for parameter in signature.parameters.values()
        ],
        return_annotation=_evaluated(signature.return_annotation, scope),
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


def body_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """What runs when ``function`` is called: below partials, ``__call__`` of an object, ``__init__`` of a class."""
    while isinstance(function, partial):
        function = function.func
    if inspect.isclass(function):
        return cast("Callable[..., Any]", function.__init__)
    if inspect.isroutine(function):
        return function
    return cast("Callable[..., Any]", getattr(function, "__call__", function))  # noqa: B004 - the method itself


def _runs_on_loop(provider: Provider) -> bool:
    """Whether a call only makes something to await or enter. It is called on the event loop, all others in a thread."""
    body = body_of(provider)
    inner = inspect.unwrap(body)
    return (
        inspect.iscoroutinefunction(body)
        or inspect.iscoroutinefunction(inner)
        or inspect.isasyncgenfunction(inner)
        or (inspect.isclass(provider) and hasattr(provider, "__aenter__"))
    )


def _is_entered(provider: Provider) -> bool:
    """Whether what it gives is made for this run alone: a class makes one, a decorated generator does."""
    inner = inspect.unwrap(body_of(provider))
    return inspect.isclass(provider) or inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def _name_of(provider: Provider) -> str:
    return str(getattr(provider, "__qualname__", type(provider).__qualname__))
