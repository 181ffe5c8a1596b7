"""The decorators ``@bg.task(…)`` and ``@bg.schedule(…)``."""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, overload

from asyncbg.engine.enqueuer import Enqueuer
from asyncbg.engine.options import TaskOptions
from asyncbg.engine.schedule import Cron, Schedules
from asyncbg.engine.task import METHOD_REMEDY, TaskDefinition, is_unbound_method
from asyncbg.engine.task_handle import Task
from asyncbg.errors import ArgumentsError, ErrorItem, InvalidTaskError

logger = logging.getLogger("asyncbg")

P = ParamSpec("P")
R = TypeVar("R")


class TaskDecorator:
    """The decorator ``@bg.task(…)``, typed for coroutine functions and plain functions."""

    def __init__(self, enqueuer: Enqueuer, schedules: Schedules, name: str | None, options: TaskOptions) -> None:
        """Register under ``name``; None means the name of the function."""
        self._enqueuer = enqueuer
        self._schedules = schedules
        self._name = name
        self._options = options

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        """Register the function. Raise DuplicateTaskError, InvalidTaskError."""
        name = self._name or getattr(function, "__name__", None)
        if name is None:
            raise InvalidTaskError(repr(type(function).__name__), "it has no name; register it with name=")
        definition = TaskDefinition.of(name, _below(function), self._options)
        if is_unbound_method(definition.function):
            definition = self._refused(definition)
        else:
            self._enqueuer.registry.add(definition)
        if isinstance(function, Task):
            self._schedules.rename(function.name, definition.name)
        return Task(self._enqueuer, self._schedules, definition)

    def _refused(self, definition: TaskDefinition) -> TaskDefinition:
        """Return the definition of a method, which is not registered: the class is created, each call is rejected."""
        logger.warning("the method %s is not registered as a task: %s", definition.function.__qualname__, METHOD_REMEDY)
        return replace(definition, is_method=True)


class ScheduleDecorator:
    """The decorator ``@bg.schedule(…)``. Registers a plain function as a task; goes above or below ``@bg.task``."""

    def __init__(self, register: TaskDecorator, cron: Cron) -> None:
        """``register`` is called with functions that are not tasks yet."""
        self._register = register
        self._cron = cron

    @overload
    def __call__(self, function: Task[P, R]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        """Schedule the task. Raise ArgumentsError if it has required arguments."""
        task = function if isinstance(function, Task) else self._register(function)
        _require_no_arguments(task._definition)
        task._schedules.add(task.name, self._cron)
        return task


def _require_no_arguments(definition: TaskDefinition) -> None:
    """Raise ArgumentsError, with the parameters, if the task has required arguments."""
    try:
        definition.bind((), {})
    except ArgumentsError as error:
        remedy = "a schedule passes no arguments, so give the parameter a default"
        items = [ErrorItem(loc=one["loc"], msg=f"{one['msg']}; {remedy}", type=one["type"]) for one in error.errors]
    else:
        definition.arguments.require_met(definition.name, ())
        return
    raise ArgumentsError(definition.name, items)


def _below(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a task that is decorated again, as by ``@bg.task`` above ``@bg.schedule``."""
    return function._definition.function if isinstance(function, Task) else function
