"""Jobs of tasks that this process does not have: removed since, or those of another program at the same database."""

from collections import Counter
from collections.abc import Iterable, Mapping

from asyncbg.backends.base import TaskCount
from asyncbg.task import Registry


def known_jobs(counts: Iterable[TaskCount], registry: Registry) -> int:
    """How many of the jobs that have not begun are of tasks this process has."""
    return sum(counted.many for counted in counts if _is_known(counted, registry))


def unknown_tasks(counts: Iterable[TaskCount], registry: Registry) -> Mapping[str, int]:
    """The tasks this process does not have, and how many of their jobs have not begun."""
    unknown: Counter[str] = Counter()
    for counted in counts:
        if not _is_known(counted, registry):
            unknown[counted.task] += counted.many
    return unknown


def _is_known(counted: TaskCount, registry: Registry) -> bool:
    """A job that is not durable has its function in the memory of a process, under whatever name."""
    return not counted.is_durable or registry.find(counted.task) is not None
