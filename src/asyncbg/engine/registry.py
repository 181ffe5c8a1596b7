"""The registry: resolves the task name of a stored job to its function."""

import inspect
import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

from asyncbg.core.function_name import module_and_qualname
from asyncbg.core.job import JobRecord, JobState
from asyncbg.engine.options import TaskOptions
from asyncbg.engine.task import TaskDefinition
from asyncbg.errors import (
    DuplicateTaskError,
    TaskChangedError,
    UnknownTaskError,
)
from asyncbg.store.base import TaskCount

_MAIN = "__main__"


class Registry:
    """All tasks of one engine, by name. Only functions registered here or found by :meth:`find` are run."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskDefinition] = {}
        self._defined: OrderedDict[str, TaskDefinition] = OrderedDict()

    def __iter__(self) -> Iterator[TaskDefinition]:
        """Iterate over the registered tasks."""
        return iter(self._tasks.values())

    @property
    def names(self) -> list[str]:
        """The names of all registered tasks, sorted."""
        return sorted(self._tasks)

    def add(self, definition: TaskDefinition) -> None:
        """Register a task. Raise DuplicateTaskError if the name belongs to another function."""
        earlier = self._tasks.get(definition.name)
        if earlier is not None and earlier.function is not definition.function:
            raise DuplicateTaskError(definition.name)
        self._tasks[definition.name] = definition

    def get(self, name: str) -> TaskDefinition:
        """Return a registered task. Raise UnknownTaskError."""
        try:
            return self._tasks[name]
        except KeyError:
            raise UnknownTaskError(name, self.names) from None

    def define_function(self, function: Callable[..., Any]) -> TaskDefinition | None:
        """Return the task of an unregistered function; None if the function has no durable name."""
        name = durable_name(function)
        if name is None:
            return None
        known = self._tasks.get(name) or self._defined.get(name)
        if known is None or known.function != function:
            known = self._defined[name] = TaskDefinition.of(name, function, TaskOptions())
        return known

    def find(self, name: str) -> TaskDefinition | None:
        """Return the task a stored job names: registered, enqueued before, or a function of a loaded module.

        No module is imported: jobs of a module that is not loaded are left to other processes. Raise TaskChangedError
        if the name resolves to something else now.
        """
        known = self._tasks.get(name) or self._defined.get(name)
        if known is None:
            function = _loaded_function(name)
            if function is not None:
                known = self._defined[name] = TaskDefinition.of(name, function, TaskOptions())
        return known

    def has(self, name: str) -> bool:
        """Whether jobs of this task are claimed here. True if the look-up fails: its jobs fail with the error."""
        try:
            return self.find(name) is not None
        except BaseException:  # noqa: BLE001 - a stored name may resolve to any object
            return True


def unwrap_partial(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
    """Return the function inside ``functools.partial``, and all arguments."""
    while isinstance(function, partial):
        args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
        function = function.func
    return function, args, kwargs


def durable_name(function: Callable[..., Any]) -> str | None:
    """Return ``module:qualname``, by which ``function`` is found after a restart, or None.

    A module run as a program gets the name it is imported by: ``pkg.mod`` for ``python -m pkg.mod``, ``app`` for
    ``python app.py``. A function of an interactive shell has none: ``__main__`` differs between programs.
    """
    module, qualname = module_and_qualname(function)
    if not module or not qualname or "<" in qualname or inspect.isclass(function):
        return None
    if _attribute(sys.modules.get(module), qualname) != function:
        return None
    name = _main_name() if module == _MAIN else module
    return f"{name}:{qualname}" if name else None


def _loaded_function(name: str) -> Callable[..., Any] | None:
    """Return the function of this name in a loaded module, or None.

    Raise TaskChangedError if the name resolves to another function or to a class.
    """
    module_name, _, qualname = name.partition(":")
    if not qualname:
        return None
    if module_name == _MAIN:
        raise TaskChangedError(name, "is in another module in every program; give the task a name with @bg.task")
    module = sys.modules.get(module_name) or (sys.modules.get(_MAIN) if module_name == _main_name() else None)
    found = _attribute(module, qualname)
    if found is None or not callable(found):
        return None
    its_module, its_qualname = module_and_qualname(found)
    is_named_so = its_qualname == qualname and its_module in (module_name, getattr(module, "__name__", None))
    if inspect.isclass(found) or not is_named_so:
        raise TaskChangedError(name, f"leads to {'a class' if inspect.isclass(found) else 'another function'} now")
    return cast("Callable[..., Any]", found)


def _attribute(module: object, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _main_name() -> str | None:
    """Return the import name of the program's main module, from ``python -m`` or its file name."""
    main = sys.modules.get(_MAIN)
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return _module_name(file, sys.path[0]) if file else None


@lru_cache(maxsize=16)
def _module_name(file: str, folder: str) -> str | None:
    """Return the import name of ``file`` with ``folder`` on the path, or None."""
    path = Path(file).resolve()
    return path.stem if path.stem.isidentifier() and path.parent == Path(folder).resolve() else None


NO_SUCH_TASK = "the task is not known here"
"""The reason for releasing a claimed job of an unknown task."""


def count_known_jobs(counts: Iterable[TaskCount], registry: Registry) -> int:
    """Return the number of waiting jobs whose task is known in this process."""
    return sum(counted.many for counted in counts if _is_known(counted, registry))


def unknown_tasks(counts: Iterable[TaskCount], registry: Registry) -> Mapping[str, int]:
    """Return the tasks unknown in this process, with the number of their waiting jobs."""
    unknown: Counter[str] = Counter()
    for counted in counts:
        if not _is_known(counted, registry):
            unknown[counted.task] += counted.many
    return unknown


def unknown_task_hint(record: JobRecord, registry: Registry) -> str | None:
    """Return why a job waits if its task is unknown in this process, else None."""
    has_begun = record.state.is_final or record.state is JobState.RUNNING
    if has_begun or not record.durable or registry.has(record.task):
        return None
    return f"this process has no task {record.task}: the job waits for one that has; cancel it where there is none"


def _is_known(counted: TaskCount, registry: Registry) -> bool:
    """Whether the task is known. The function of a job that is not durable is in memory, under any name."""
    return not counted.is_durable or registry.has(counted.task)


logger = logging.getLogger("asyncbg")

_MAX_WARNED = 1000


class InMemoryJobs:
    """The functions and arguments of jobs that are not durable, such as lambdas and closures, by job id."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[TaskDefinition, dict[str, Any]]] = {}
        self._warned: set[str] = set()

    def add(self, job_id: str, definition: TaskDefinition, bound: dict[str, Any]) -> None:
        """Store the function and arguments of a job; log a warning once for each task."""
        self._jobs[job_id] = (definition, bound)
        name = definition.name
        if name not in self._warned and len(self._warned) < _MAX_WARNED:
            self._warned.add(name)
            logger.warning(
                "jobs of %s are not durable: a lambda, a closure, a bound method or an argument without a JSON form "
                "cannot survive a restart; pass a module-level function and plain arguments", name,
            )  # fmt: skip

    def get(self, job_id: str) -> tuple[TaskDefinition, dict[str, Any]] | None:
        """Return the function and arguments of a job, or None."""
        return self._jobs.get(job_id)

    def clear(self) -> None:
        """Drop all jobs: the engine was stopped or abandoned."""
        self._jobs.clear()

    def drop(self, job_id: str) -> None:
        """Drop a job that is final or was not accepted."""
        self._jobs.pop(job_id, None)
