"""Jobs that are not durable: lambdas, closures and arguments without a JSON form, kept in this process only."""

import logging
from typing import Any

from asyncbg.engine.task import TaskDefinition

logger = logging.getLogger("asyncbg")

_MOST_WARNED = 1000


class InMemoryJobs:
    """The function and the arguments of each such job that is not final."""

    def __init__(self) -> None:
        """Start empty."""
        self._jobs: dict[str, tuple[TaskDefinition, dict[str, Any]]] = {}
        self._warned: set[str] = set()

    def keep(self, job_id: str, definition: TaskDefinition, bound: dict[str, Any]) -> None:
        """Keep what a job needs to run; a warning names its task once."""
        self._jobs[job_id] = (definition, bound)
        name = definition.name
        if name not in self._warned and len(self._warned) < _MOST_WARNED:
            self._warned.add(name)
            logger.warning(
                "jobs of %s are not durable: a lambda, a closure, a bound method or an argument without a JSON form "
                "cannot survive a restart; hand over a module-level function and plain arguments", name,
            )  # fmt: skip

    def take(self, job_id: str) -> tuple[TaskDefinition, dict[str, Any]] | None:
        """The function and the arguments of such a job, or None."""
        return self._jobs.get(job_id)

    def clear(self) -> None:
        """Forget all: the life of the engine that they belong to is over."""
        self._jobs.clear()

    def drop(self, job_id: str) -> None:
        """Forget a job that is final, or was not accepted."""
        self._jobs.pop(job_id, None)
