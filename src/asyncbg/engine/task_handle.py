"""Task handles: the object that ``@bg.task`` returns, which can be awaited or enqueued, with options for one job."""

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, ParamSpec, TypeVar

import aiosqlite

from asyncbg.core.job import ANONYMOUS
from asyncbg.engine.enqueuer import Enqueuer
from asyncbg.engine.job_handle import Job
from asyncbg.engine.options import NO_OPTIONS, CallOptions
from asyncbg.engine.schedule import Schedules
from asyncbg.engine.task import TaskDefinition

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A registered task: ``await task(…)`` runs it inline, ``await task.enqueue(…)`` enqueues a job."""

    def __init__(self, enqueuer: Enqueuer, schedules: Schedules, definition: TaskDefinition) -> None:
        self._enqueuer = enqueuer
        self._schedules = schedules
        self._definition = definition
        self._plain: TaskCall[P] = TaskCall(enqueuer, definition, NO_OPTIONS)
        functools.update_wrapper(self, definition.function)

    @property
    def name(self) -> str:
        """The name under which jobs are stored."""
        return self._definition.name

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it inline: dependencies are resolved, nothing is stored. A dependency may be passed by keyword."""
        result: R = await _run_inline(self._enqueuer, self._definition, args, kwargs)
        return result

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Enqueue a job. Return when it is on disk."""
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
        """Return the task with options for one job, stored in the open transaction of ``connection`` if given."""
        options = CallOptions(
            delay=delay, at=at, priority=priority, idempotency_key=idempotency_key, tags=tags, owner=owner,
            connection=connection,
        )  # fmt: skip
        return TaskCall(self._enqueuer, self._definition, options)


class TaskCall(Generic[P]):
    """A task with options for one job; pass it to ``add_task``, or :meth:`enqueue` it."""

    def __init__(self, enqueuer: Enqueuer, definition: TaskDefinition, options: CallOptions) -> None:
        self._enqueuer = enqueuer
        self._definition = definition
        self._options = options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Enqueue a job. Return when it is on disk."""
        definition = self._definition
        bound = definition.bind(args, kwargs)
        prepared = self._enqueuer.prepare(definition, bound, self._options)
        if self._options.connection is not None:
            return await self._enqueuer.accept_within(self._options.connection, prepared)
        await self._enqueuer.accept((prepared,))
        return prepared.job

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run it inline, without the options."""
        return await _run_inline(self._enqueuer, self._definition, args, kwargs)


async def _run_inline(
    enqueuer: Enqueuer, definition: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run a task in the caller's asyncio task; dependencies are resolved unless passed by keyword."""
    bound = definition.bind(args, kwargs)
    return await enqueuer.executor.run_inline(definition, bound)
