"""One attempt: from a claimed job to the outcome it ended in. Never raises for what a task does."""

import asyncio
import inspect
import logging
import random
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter

from asyncbg.clock import Clock
from asyncbg.context import CurrentJob, enter
from asyncbg.errors import ArgumentsError, UnreadableError
from asyncbg.job import Done, Failed, JobError, Lease, Outcome, Retry
from asyncbg.personal import StandIns
from asyncbg.redact import redact
from asyncbg.retry import RetryPolicy, is_retryable, requested_delay_s
from asyncbg.runner.threads import Threads
from asyncbg.seal import require_readable
from asyncbg.task import TaskDefinition, dump_result

logger = logging.getLogger("asyncbg")

_LONGEST_MESSAGE = 2_000
_LONGEST_DELAY_S = 30 * 86_400


class AttemptTimeoutError(Exception):
    """The attempt took longer than the task's ``timeout``."""


class Executor:
    """Runs attempts: ``async def`` on the event loop, ``def`` in asyncbg's own bounded worker threads."""

    def __init__(self, *, threads: int, clock: Clock, rng: random.Random) -> None:
        """Bound the worker threads; ``rng`` draws the retry delays."""
        self._threads = Threads(threads)
        self._clock = clock
        self._rng = rng

    async def attempt(self, job: CurrentJob, definition: TaskDefinition, bound: dict[str, Any] | None) -> Outcome:
        """Run the task once. ``bound`` are arguments kept in memory; None reads them from the job.

        A cancellation goes through: whoever cancelled knows why.
        """
        lease = job.lease
        enter(job)
        try:
            if bound is None:
                require_readable(lease.args)
                bound = definition.arguments.load(lease.task, lease.args)
            if definition.arguments.marks:
                job.conceal(StandIns(bound, definition.arguments.marks))
            return Done(await self.call(definition, bound, job))
        except (ArgumentsError, UnreadableError) as error:
            return Failed(describe(error))
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is recorded on its job, SystemExit too
            return self._failure(lease, definition.options.retry, error, job.clean)

    async def call(self, definition: TaskDefinition, bound: dict[str, Any], job: CurrentJob | None = None) -> str:
        """Call the function with its arguments and dependencies; its result as JSON text."""
        if definition.arguments.dependencies.names:
            async with definition.arguments.dependencies.resolved(bound) as supplied:
                return await self._call(definition, {**supplied, **bound}, job)
        return await self._call(definition, bound, job)

    async def _call(self, definition: TaskDefinition, bound: dict[str, Any], job: CurrentJob | None) -> str:
        args, kwargs = definition.arguments.spread(bound)
        if definition.is_async:
            value = await definition.function(*args, **kwargs)
        else:
            if job is not None:
                job.bind_loop()
            value = await self._threads.run(lambda: definition.function(*args, **kwargs))
            value = await value if inspect.isawaitable(value) else value
        return dump_result(definition.name, value)

    def timed_out(self, lease: Lease, definition: TaskDefinition) -> Outcome:
        """What becomes of an attempt whose time is over."""
        error = AttemptTimeoutError(f"took longer than {definition.options.timeout:g} s")
        return self._failure(lease, definition.options.retry, error)

    def _failure(
        self, lease: Lease, policy: RetryPolicy, error: BaseException, clean: Callable[[str], str] = redact
    ) -> Outcome:
        described = describe(error, clean)
        if lease.attempt >= lease.max_attempts or not is_retryable(error):
            logger.warning("job %s (%s) failed: %s", lease.id, lease.task, described.type)
            return Failed(described)
        delay_s = requested_delay_s(error)
        if delay_s is None:
            delay_s = policy.delay_s(lease.attempt, self._rng)
        delay_s = min(delay_s, _LONGEST_DELAY_S)
        logger.info("job %s (%s) failed and is retried in %.1f s: %s", lease.id, lease.task, delay_s, described.type)
        return Retry(described, self._clock.now_ms() + int(delay_s * 1000))


async def in_thread(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], limiter: CapacityLimiter | None
) -> Any:
    """Run a plain function in a worker thread; await what it gives where that is awaitable."""
    value = await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=limiter, abandon_on_cancel=True)
    return await value if inspect.isawaitable(value) else value


def describe(error: BaseException, clean: Callable[[str], str] = redact) -> JobError:
    """An error as it is stored on the job: its class and its cleaned message, cut to a bearable length."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - an error that cannot say what it is
        text = "its message cannot be read"
    storable = clean(text).encode("utf-8", "replace").decode()
    return JobError(type=type(error).__name__, message=storable[:_LONGEST_MESSAGE])
