"""The executor: runs one attempt of a claimed job and returns its outcome. Errors of tasks are never raised."""

import asyncio
import contextlib
import gc
import inspect
import logging
import random
import warnings
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar, Token
from dataclasses import replace
from functools import partial
from typing import Any

from asyncbg.core.clock import Clock
from asyncbg.core.error_log import ends_task
from asyncbg.core.job import Done, Failed, JobFailure, Lease, Outcome, Retry
from asyncbg.core.retry import is_retryable, requested_delay_s
from asyncbg.engine.context import CurrentJob, set_current_job
from asyncbg.engine.dependencies import Overrides
from asyncbg.engine.failure import describe, stack_text, traceback_text
from asyncbg.engine.task import TaskDefinition, dump_result
from asyncbg.engine.threads import Threads
from asyncbg.errors import ArgumentsError, ResultError, UnawaitedError, UnreadableError
from asyncbg.privacy import redact
from asyncbg.privacy.encryption import require_readable
from asyncbg.privacy.marks import ArgumentRedactor

logger = logging.getLogger("asyncbg")

_CHANGED_RETRIES = 10
_CHANGED_CAP_S = 300.0
_LONGEST_DELAY_S = 30 * 86_400
_REPORTING_THREADS = 4


class AttemptTimeoutError(Exception):
    """The attempt took longer than the task's ``timeout``."""


class Executor:
    """Runs tasks: ``async def`` on the event loop, ``def`` in asyncbg's own bounded worker threads.

    It runs jobs, tasks that are awaited inline, and the providers of both.
    """

    def __init__(
        self,
        *,
        threads: int,
        clock: Clock,
        rng: random.Random,
        max_result_bytes: int = 1024 * 1024,
        keeps_tracebacks: bool = True,
    ) -> None:
        """Limit the worker threads and the size of results; ``rng`` is used for retry jitter."""
        self._max_result_bytes = max_result_bytes
        self.overrides = Overrides()
        """The dependency overrides of the applications."""
        self._threads = Threads(threads)
        self._report_threads = Threads(_REPORTING_THREADS)
        self._keeps_tracebacks = keeps_tracebacks
        self._clock = clock
        self._rng = rng
        install_unawaited_hook()

    async def attempt(self, job: CurrentJob, definition: TaskDefinition, bound: dict[str, Any] | None) -> Outcome:
        """Run the task once. ``bound`` are arguments in memory; None loads them from the job.

        A cancellation of this attempt is raised: the worker knows the reason.
        """
        lease = job.lease
        set_current_job(job)
        try:
            bound = self._load(definition, lease) if bound is None else bound
        except UnreadableError as error:
            return await self._failed(job, definition, error, is_final=True)
        except ArgumentsError as error:
            return self._arguments_changed(lease, error)
        except Exception as error:  # noqa: BLE001 - an argument's own validator may raise anything
            return await self._failed(job, definition, error)
        try:
            if definition.arguments.marks:
                job.redact_with(ArgumentRedactor(bound, definition.arguments.marks))
            value = await self._call(definition, bound, self._threads.run)
            return Done(dump_result(definition.name, value, max_bytes=self._max_result_bytes))
        except ResultError as error:  # the task has run: another attempt would repeat its effects
            return await self._failed(job, definition, error, is_final=True)
        except GeneratorExit:
            raise  # this coroutine may be closing: the caller decides, see generator_exit_outcome()
        except BaseException as error:
            if ends_task(error) or (isinstance(error, asyncio.CancelledError) and job.cancelled.is_set):
                raise
            return await self._failed(job, definition, error)

    def _load(self, definition: TaskDefinition, lease: Lease) -> dict[str, Any]:
        require_readable(lease.args)
        return definition.arguments.load(lease.task, lease.args)

    async def run_inline(self, definition: TaskDefinition, bound: Mapping[str, Any]) -> Any:
        """Run a task in the caller's asyncio task and return its result."""
        self.require_met(definition, bound)
        return await self._call(definition, bound, self._threads.run_or_abandon)

    def require_met(self, definition: TaskDefinition, given: Collection[str]) -> None:
        """Raise ArgumentsError if a provider of the task needs a request and its parameter is not ``given``."""
        definition.arguments.require_met(definition.name, given, self.overrides)

    async def _call(self, definition: TaskDefinition, bound: Mapping[str, Any], in_thread: Callable[..., Any]) -> Any:
        """Call the function once. Raise UnawaitedError if it did not await a coroutine that it created."""
        dropped, token = collect_unawaited()
        try:
            how = self._supply if definition.arguments.dependencies.names else self._enter
            value = await how(definition, bound, in_thread)
        except BaseException as error:
            if dropped:
                error.add_note(f"never awaited: {', '.join(dropped)}")
            raise
        finally:
            stop_collecting(token)
        if dropped:
            raise UnawaitedError(definition.name, dropped)
        return value

    async def _supply(self, definition: TaskDefinition, bound: Mapping[str, Any], in_thread: Callable[..., Any]) -> Any:
        """Call the function with its dependencies."""
        dependencies = definition.arguments.dependencies
        if not dependencies.need_closing:
            return await self._enter(definition, {**dependencies.progress(), **bound}, in_thread)
        async with dependencies.resolved(bound, self._threads, self.overrides) as supplied:
            return await self._enter(definition, {**supplied, **bound}, in_thread)

    async def _enter(self, definition: TaskDefinition, bound: Mapping[str, Any], in_thread: Callable[..., Any]) -> Any:
        args, kwargs = definition.arguments.spread(bound)
        if not definition.is_async:
            value = await in_thread(partial(definition.function, *args, **kwargs))
            return await value if inspect.isawaitable(value) else value
        value = await definition.function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value.close()
            raise UnawaitedError(definition.name, [value.__qualname__])
        return value

    def generator_exit_outcome(self, job: CurrentJob, definition: TaskDefinition, error: GeneratorExit) -> Outcome:
        """Return the outcome of an attempt that raised GeneratorExit; raise it if the coroutine is closing.

        A future that raises GeneratorExit closes the coroutines that await it, so only the outermost can decide.
        """
        if ends_task(error):
            raise error
        return self._failure(job.lease, definition, error, job.clean)

    def _arguments_changed(self, lease: Lease, error: ArgumentsError) -> Outcome:
        """Return the outcome of a job stored by another version of the task: retry, as a deploy may be in progress."""
        changed = JobFailure(
            type=type(error).__name__,
            message=f"{error}; the job was stored by a version of the task that took other arguments: "
            "deploy one that takes these, then retry the job",
        )
        if lease.attempt >= lease.max_attempts + _CHANGED_RETRIES:
            logger.error("job %s (%s) failed: %s", lease.id, lease.task, error)
            return Failed(changed)
        delay_s = min(_CHANGED_CAP_S, 2.0**lease.attempt)
        logger.warning("job %s (%s) is retried in %.0f s: %s", lease.id, lease.task, delay_s, error)
        return Retry(changed, self._clock.now_ms() + int(delay_s * 1000))

    def timed_out(self, job: CurrentJob, definition: TaskDefinition, task: asyncio.Task[Any]) -> Outcome:
        """Return the outcome of an attempt that timed out; its traceback shows where the coroutine waits."""
        error = AttemptTimeoutError(f"took longer than {definition.options.timeout:g} s")
        stack = stack_text(task) if definition.is_async else None
        return self._failure(job.lease, definition, error, job.clean, stack=stack)

    async def _failed(
        self, job: CurrentJob, definition: TaskDefinition, error: BaseException, *, is_final: bool = False
    ) -> Outcome:
        """Return the outcome of an attempt that raised. Runs in a thread: tracebacks and messages may be long."""
        failure: Outcome = await self._report_threads.run(
            partial(self._failure, job.lease, definition, error, job.clean, is_final=is_final)
        )
        return failure

    def _failure(
        self,
        lease: Lease,
        definition: TaskDefinition,
        error: BaseException,
        clean: Callable[[str], str] = redact,
        *,
        is_final: bool = False,
        stack: str | None = None,
    ) -> Outcome:
        described = describe(error, clean)
        if self._keeps_tracebacks:
            described = replace(described, traceback=traceback_text(error, clean, stack and clean(stack)))
        traceback = traceback_text(error, None, stack)
        if is_final or lease.attempt >= lease.max_attempts or not is_retryable(error):
            _log(logging.ERROR, traceback, "job %s (%s) failed: %s", lease.id, lease.task, described.type)
            return Failed(described)
        delay_s = requested_delay_s(error)
        if delay_s is None:
            delay_s = definition.options.retry.delay_s(lease.attempt, self._rng)
        delay_s = min(delay_s, _LONGEST_DELAY_S)
        message = "job %s (%s) failed and is retried in %.1f s: %s"
        _log(logging.WARNING, traceback, message, lease.id, lease.task, delay_s, described.type)
        return Retry(described, self._clock.now_ms() + int(delay_s * 1000))


def _log(level: int, traceback: str | None, message: str, *args: object) -> None:
    """Log with a traceback as text: bounded, and without the messages of its errors."""
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(logger.name, level, __file__, 0, message, args, None)
    record.exc_text = traceback and traceback.rstrip("\n")
    with contextlib.suppress(Exception):  # an application's log handler failed; the error is stored on the job
        logger.handle(record)


_WARN = "_warn_unawaited_coroutine"
_collected: ContextVar[list[str] | None] = ContextVar("asyncbg_unawaited", default=None)


def collect_unawaited() -> tuple[list[str], Token[list[str] | None]]:
    """Start collecting the names of dropped coroutines, also in threads that the caller awaits."""
    names: list[str] = []
    return names, _collected.set(names)


def stop_collecting(token: Token[list[str] | None]) -> None:
    """Stop collecting."""
    _collected.reset(token)


def install_unawaited_hook() -> None:
    """Hook into Python's warning about coroutines that were never awaited, and collect them for the current run.

    CPython calls a function of the warnings module, by name, when it frees such a coroutine. A warnings filter is not
    enough, since each line warns only once. Without that function nothing is collected.
    """
    warn = getattr(warnings, _WARN, None)
    if warn is None or getattr(warn, "is_asyncbg", False):
        return

    collecting = _Collecting()
    gc.callbacks.append(collecting)

    def record(coroutine: Any) -> None:
        names = _collected.get()
        if names is None or collecting.is_on:  # the garbage collector may free coroutines of any run
            warn(coroutine)
        else:
            names.append(coroutine.__qualname__)

    record.is_asyncbg = True  # type: ignore[attr-defined]
    setattr(warnings, _WARN, record)


class _Collecting:
    """A garbage collector callback: whether a collection is running."""

    is_on = False

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        self.is_on = phase == "start"
