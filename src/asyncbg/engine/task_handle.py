"""What ``@bg.task`` makes of a function: it can be awaited, enqueued, and given options for one job."""

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
    """A registered task: ``await task(…)`` runs it here and now, ``await task.enqueue(…)`` makes a job of it."""

    def __init__(self, enqueuer: Enqueuer, schedules: Schedules, definition: TaskDefinition) -> None:
        """Made by ``@bg.task``."""
        self.enqueuer = enqueuer
        self.schedules = schedules
        self.definition = definition
        self._plain: TaskCall[P] = TaskCall(enqueuer, definition, NO_OPTIONS)
        functools.update_wrapper(self, definition.function)

    @property
    def name(self) -> str:
        """The name jobs are stored under."""
        return self.definition.name

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it inline: dependencies are resolved, nothing is stored. A dependency may be given by keyword."""
        result: R = await _run_inline(self.enqueuer, self.definition, args, kwargs)
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
            delay=delay, at=at, priority=priority, idempotency_key=idempotency_key, tags=tags, owner=owner,
            connection=connection,
        )  # fmt: skip
        return TaskCall(self.enqueuer, self.definition, options)


class TaskCall(Generic[P]):
    """A task with options for one job; hand it to ``add_task``, or :meth:`enqueue` it."""

    def __init__(self, enqueuer: Enqueuer, definition: TaskDefinition, options: CallOptions) -> None:
        """Made by :meth:`Task.options`."""
        self.enqueuer = enqueuer
        self.definition = definition
        self.call_options = options

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Accept a job; returns when it is on disk."""
        definition = self.definition
        bound = definition.bind(args, kwargs)
        prepared = self.enqueuer.prepare(definition, bound, self.call_options)
        if self.call_options.connection is not None:
            return await self.enqueuer.accept_within(self.call_options.connection, prepared)
        await self.enqueuer.accept((prepared,))
        return prepared.job

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run it inline, as the task itself does; the options are those of a job."""
        return await _run_inline(self.enqueuer, self.definition, args, kwargs)


async def _run_inline(
    enqueuer: Enqueuer, definition: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run a task here and now, its dependencies resolved unless given by keyword."""
    bound = definition.bind(args, kwargs)
    return await enqueuer.executor.run_inline(definition, bound)
