"""Enqueue targets: resolves a task, a task with options, or any function to the job to store."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import aiosqlite

from asyncbg.core.function_name import display_name
from asyncbg.core.job import ANONYMOUS
from asyncbg.engine.enqueuer import Enqueuer, PreparedJob
from asyncbg.engine.job_handle import Job
from asyncbg.engine.options import NO_OPTIONS, TaskOptions
from asyncbg.engine.registry import Registry, unwrap_partial
from asyncbg.engine.task import TaskDefinition, is_unbound_method
from asyncbg.engine.task_handle import Task, TaskCall
from asyncbg.errors import ArgumentsError, ErrorItem, TransactionError

Target: TypeAlias = "Callable[..., Any] | Task[..., Any] | TaskCall[Any]"


def enqueuer_of(target: Target, otherwise: Enqueuer) -> Enqueuer:
    """Return the enqueuer of the task's own engine; for any other function ``otherwise``."""
    return target._enqueuer if isinstance(target, Task | TaskCall) else otherwise


async def enqueue_target(enqueuer: Enqueuer, target: Target, args: Sequence[Any], kwargs: dict[str, Any]) -> Job:
    """Accept a job; with ``connection=`` in ``kwargs`` it is stored in the transaction open there."""
    enqueuer = enqueuer_of(target, enqueuer)
    connection = _take_connection(enqueuer.registry, target, kwargs) if "connection" in kwargs else None
    if isinstance(target, TaskCall) and target._options.connection is not None:
        connection = connection or target._options.connection
        target = TaskCall(enqueuer, target._definition, replace(target._options, connection=None))
    prepared = prepare_target(enqueuer, target, args, kwargs)
    if connection is not None:
        return await enqueuer.accept_within(connection, prepared)
    await enqueuer.accept([prepared])
    return prepared.job


def prepare_target(
    enqueuer: Enqueuer, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], *, owner: str | None = None
) -> PreparedJob:
    """Validate a call and assign its id; nothing is stored yet. Raise ArgumentsError, TransactionError."""
    if isinstance(target, functools.partial):
        target, args, kwargs = unwrap_partial(target, args, kwargs)
    options = target._options if isinstance(target, TaskCall) else NO_OPTIONS
    if options.connection is not None:
        raise TransactionError(
            "a job in a transaction cannot be added by add_task; use await task.options(connection=…).enqueue(…)"
        )
    if owner is not None and options.owner == ANONYMOUS:
        options = replace(options, owner=owner)
    definition, durable = _define(enqueuer.registry, target)
    bound = _bind(definition, args, kwargs)
    return enqueuer.prepare(definition, bound, options, durable=durable)


def _define(registry: Registry, target: Target) -> tuple[TaskDefinition, bool]:
    """Return the task of a target, and whether it has a durable name."""
    if isinstance(target, Task | TaskCall):
        return target._definition, True
    handed = registry.define_function(target)
    return handed or TaskDefinition.of(display_name(target), target, TaskOptions()), handed is not None


def _bind(definition: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Match and validate the arguments. Raise ArgumentsError, with a hint if the function is a method."""
    try:
        return definition.bind(args, kwargs)
    except ArgumentsError as error:
        if not is_unbound_method(definition.function):
            raise
        items = [*error.errors, _unbound(definition.function)]
    raise ArgumentsError(definition.name, items)


def _unbound(method: Callable[..., Any]) -> ErrorItem:
    msg = f"{method.__qualname__} is a method: pass that of an object, or the object as its first argument"
    return {"loc": ["self"], "msg": msg, "type": "unbound_method"}


def _take_connection(registry: Registry, target: Target, kwargs: dict[str, Any]) -> aiosqlite.Connection | None:
    """Remove and return ``connection=``, unless the task has a parameter of that name and takes it."""
    given: object = kwargs["connection"]
    if not isinstance(given, aiosqlite.Connection):
        arguments = _define(registry, unwrap_partial(target, (), {})[0])[0].arguments
        if "connection" in arguments.names or "connection" in arguments.injected:
            return None
        if given is not None:
            raise TransactionError(
                f"connection= takes an aiosqlite connection, not {type(given).__name__}; "
                "pass an argument of that name by task.enqueue(connection=…)"
            )
        given = None
    del kwargs["connection"]
    return given
