"""Dependency injection: resolves the dependencies of a task for each run and closes them after it."""

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


def Depends(provider: Provider | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - FastAPI's name
    """Inject the value of ``provider``, resolved when the task runs and closed after it, as FastAPI's ``Depends``.

    ``provider`` is a function, a coroutine function or a generator of either kind (the part after ``yield`` runs when
    the task has ended), and may have ``Depends`` parameters itself. It is called once per run, unless
    ``use_cache`` is False.
    """
    return fastapi.params.Depends(dependency=provider, use_cache=use_cache)


class Overriding(Protocol):
    """An application with dependency overrides, which tests may replace or change at any time."""

    dependency_overrides: dict[Provider, Provider]


class Overrides:
    """The ``dependency_overrides`` of the applications that the engine runs in."""

    def __init__(self) -> None:
        self._applications: list[Overriding] = []

    def __bool__(self) -> bool:
        """Whether any provider is overridden now."""
        for one in self._applications:  # called for every job, so without a generator  # noqa: SIM110
            if one.dependency_overrides:
                return True
        return False

    def add(self, application: Overriding) -> None:
        """Use the overrides of ``application``."""
        self._applications.append(application)

    def remove(self, application: Overriding) -> None:
        """Stop using the overrides of ``application``."""
        self._applications.remove(application)

    def find(self, provider: Provider) -> Provider:
        """Return the override of ``provider``, or ``provider`` itself."""
        for one in self._applications:
            if provider in one.dependency_overrides:
                return one.dependency_overrides[provider]
        return provider


NO_OVERRIDES = Overrides()


class Dependencies:
    """The dependencies of one function, read from its signature."""

    def __init__(self, signature: inspect.Signature) -> None:
        """Read ``signature``, whose annotations are resolved."""
        self._providers: dict[str, fastapi.params.Depends] = {}
        self._foreign: dict[str, Any] = {}
        self._progress: dict[str, Progress] = {}
        self._defaults: dict[str, Any] = {}
        self._required: list[str] = []
        for parameter in signature.parameters.values():
            self._read(parameter)
        self.names = frozenset({*self._providers, *self._foreign, *self._progress})
        """The parameters that are injected."""
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
        elif isinstance(default, fastapi.params.Param | fastapi.params.Body):  # Query(…): supplied by a request
            if default.is_required():
                self._required.append(name)
            else:
                self._defaults[name] = default.get_default(call_default_factory=True)
        elif default is inspect.Parameter.empty and parameter.kind not in _VARIADIC:
            self._required.append(name)

    @property
    def need_closing(self) -> bool:
        """Whether there is anything to close after the run."""
        return bool(self._providers or self._foreign)

    def progress(self) -> dict[str, Progress]:
        """Return the ``Progress`` parameters, bound to the running job."""
        return {name: bound_progress(default) for name, default in self._progress.items()}

    def unmet(self, overrides: Overrides = NO_OVERRIDES) -> dict[str, str]:
        """Return the parameters whose provider needs a request, each with the name of what is missing."""
        found = {name: _missing(declared, overrides, ()) for name, declared in self._providers.items()}
        return {name: missing for name, missing in found.items() if missing is not None}

    @asynccontextmanager
    async def resolved(
        self, given: Mapping[str, Any], threads: Threads, overrides: Overrides = NO_OVERRIDES
    ) -> AsyncIterator[dict[str, Any]]:
        """Resolve the dependencies that are not ``given`` by name; they are closed when the block ends.

        Errors of providers are raised. An error of the block is always raised: a provider may replace it with another
        error, but cannot suppress it.
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
    """One resolution: the values provided so far, and the exit stack that closes them."""

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
        """Resolve dependencies of the package uncalled-for, which can read the arguments of the call."""
        frame = uncalled_for.resolved_dependencies(needed._frame, dict(given))
        values = await self._stack.enter_async_context(frame)
        for value in values.values():
            if isinstance(value, uncalled_for.FailedDependency):
                raise value.error
        return values

    async def _enter(self, provider: Provider, call: Callable[[], Any]) -> Any:
        """Call a provider; generators and context managers are entered, and closed after the run."""
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
    """A plain context manager that is entered and exited in a thread."""

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
    """Raise a cancellation that arrived while a thread was awaited."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def provider_of(parameter: inspect.Parameter) -> fastapi.params.Depends | uncalled_for.Dependency[Any] | None:
    """Return the dependency that a parameter declares in its default or annotation: FastAPI's or uncalled-for's."""
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
    """Return the dependencies of a provider."""
    return Dependencies(signature_of(provider))


def _missing(declared: fastapi.params.Depends, overrides: Overrides, above: tuple[Provider, ...]) -> str | None:
    """Return the first parameter, of this provider or those it depends on, that cannot be supplied."""
    provider = overrides.find(cast("Provider", declared.dependency))
    if provider in above:
        raise RecursionError(f"the provider {_name_of(provider)} depends on itself")
    needed = dependencies_of(provider)
    below = (_missing(one, overrides, (*above, provider)) for one in needed._providers.values())
    return next((name for name in (*needed._required, *below) if name is not None), None)


def _frame(signature: inspect.Signature, foreign: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a function whose signature uncalled-for can resolve: dependencies as keyword-only defaults."""

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


# Signatures and callables


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature with each annotation resolved; one that cannot be resolved becomes Any.

    A builtin without a signature accepts any arguments.
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
    """Return the code that a call runs: inside partials, ``__call__`` of an object, ``__init__`` of a class."""
    while isinstance(function, partial):
        function = function.func
    if inspect.isclass(function):
        return cast("Callable[..., Any]", function.__init__)
    if inspect.isroutine(function):
        return function
    return cast("Callable[..., Any]", getattr(function, "__call__", function))  # noqa: B004 - the method itself


def _runs_on_loop(provider: Provider) -> bool:
    """Whether a call only creates something to await or enter, so that it runs on the event loop, not in a thread."""
    body = body_of(provider)
    inner = inspect.unwrap(body)
    return (
        inspect.iscoroutinefunction(body)
        or inspect.iscoroutinefunction(inner)
        or inspect.isasyncgenfunction(inner)
        or (inspect.isclass(provider) and hasattr(provider, "__aenter__"))
    )


def _is_entered(provider: Provider) -> bool:
    """Whether its value is created for this run, so that it is entered and closed: a class or a generator."""
    inner = inspect.unwrap(body_of(provider))
    return inspect.isclass(provider) or inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def _name_of(provider: Provider) -> str:
    return str(getattr(provider, "__qualname__", type(provider).__qualname__))
