"""Task definitions: a named function with its options and typed arguments, and the JSON form of its result."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from asyncbg.core.stored_text import dump_json, has_long_number
from asyncbg.engine.arguments import EXTRA_KEYWORD, EXTRA_POSITIONAL, Arguments, arguments_of
from asyncbg.engine.dependencies import body_of, signature_of
from asyncbg.engine.options import TaskOptions
from asyncbg.engine.unique_key import UniqueKey
from asyncbg.errors import (
    InvalidTaskError,
    ResultError,
)

_MAX_RESULT_BYTES = 1024 * 1024


METHOD_REMEDY = (
    "its jobs have no object to pass as self; register a function of the module, or a @staticmethod, and let it make "
    "the object or take it by Depends"
)


@dataclass(frozen=True, slots=True, eq=False)
class TaskDefinition:
    """A registered task: its name, the function it runs, its options and its arguments."""

    name: str
    function: Callable[..., Any]
    options: TaskOptions
    arguments: Arguments
    is_async: bool
    key: UniqueKey | None
    is_method: bool = False
    """Whether it is a method: its jobs have no object for ``self``, so each call is rejected."""

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], options: TaskOptions) -> "TaskDefinition":
        """Define a task. Raise InvalidTaskError for an unusable function, UniqueKeyError for an invalid key."""
        require_task(name, function)
        arguments, key = arguments_of(function), None
        if options.key is not None:
            key = UniqueKey(name, options.key, signature_of(function), injected=arguments.injected)
        return cls(name, function, options, arguments, is_async_callable(function), key)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Match arguments to parameters and validate them. Raise ArgumentsError; InvalidTaskError for a method."""
        if self.is_method:
            raise InvalidTaskError(self.name, f"it is the method {self.function.__qualname__}; {METHOD_REMEDY}")
        return self.arguments.bind(self.name, args, kwargs)

    def unique_key(self, bound: Mapping[str, Any]) -> str | None:
        """Return the unique key of a call, None if the task has none. Raise UniqueKeyError."""
        return None if self.key is None else self.key.of(bound, rest=EXTRA_POSITIONAL, more=EXTRA_KEYWORD)


def require_task(name: str, function: Any) -> None:
    """Raise InvalidTaskError, with the reason, for anything that is not a function a job can run."""
    if inspect.iscoroutine(function) or inspect.isasyncgen(function) or inspect.isgenerator(function):
        if inspect.iscoroutine(function):
            function.close()  # it will never be awaited; the error below says so
        raise InvalidTaskError(
            function.__qualname__, f"it is a {_kind_of(function)}, so it was called already; pass the function "
            f"and its arguments separately: add_task({function.__name__}, …), not add_task({function.__name__}(…))",
        )  # fmt: skip
    if not callable(function):
        raise InvalidTaskError(
            name, f"it is of type {type(function).__name__}, which is not callable: pass the function itself"
        )
    body = body_of(function)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        raise InvalidTaskError(
            name, "it is a generator, and yielded values are not supported; return the result, "
            "and report progress by a parameter `progress: Progress = Progress()`",
        )  # fmt: skip


def _kind_of(called: Any) -> str:
    return "coroutine" if inspect.iscoroutine(called) else "generator"


def is_unbound_method(function: Any) -> bool:
    """Whether it is a function of a class whose first parameter is ``self`` or ``cls``."""
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not inspect.isfunction(function) or not owner or owner.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(function).parameters), "") in {"self", "cls"}


def is_async_callable(function: Any) -> bool:
    """Whether calling it returns a coroutine: ``async def``, also inside a partial or as ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or (
        not inspect.isclass(function) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    )


def dump_result(task: str, value: Any, *, max_bytes: int = _MAX_RESULT_BYTES) -> str:
    """Return a task's result as JSON text, null for NaN and infinity. Raise ResultError if it has no JSON form."""
    if value is None:
        return "null"
    try:
        text = _result_text(value)
    except Exception:  # noqa: BLE001 - its own serializers may raise anything
        text = None
    if text is None or has_long_number(text):
        raise ResultError(
            f"task {task!r} ran, and its result, of type {type(value).__name__}, has no JSON form; "
            "return a model, a dataclass, plain values or None"
        )
    if len(text) > max_bytes:
        raise ResultError(
            f"task {task!r} ran, and its result is {len(text):,} bytes as JSON, more than {max_bytes:,} "
            "(ASYNCBG_JOBS__MAX_RESULT_BYTES); store it elsewhere and return a reference"
        )
    return text


def _result_text(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="null", bytes_mode="base64").decode()
    except (PydanticSerializationError, UnicodeError):  # a lone surrogate, or no JSON at all
        try:
            plain = to_jsonable_python(value, bytes_mode="base64")
        except (PydanticSerializationError, UnicodeError):
            plain = value
        return dump_json(plain)
