"""Jobs of tasks that this process does not have: removed since, or those of another program at the same database."""

from collections import Counter
from collections.abc import Iterable, Mapping

from asyncbg.core.job import JobRecord, JobState
from asyncbg.engine.task import Registry
from asyncbg.store.base import TaskCount

NO_SUCH_TASK = "the task is not known here"
"""Why a claimed job is given back by a process that does not have its task."""


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


def unknown_task_hint(record: JobRecord, registry: Registry) -> str | None:
    """Why a job does not run where this process does not have its task; None for any other."""
    has_begun = record.state.is_final or record.state is JobState.RUNNING
    if has_begun or not record.durable or registry.has(record.task):
        return None
    return f"this process has no task {record.task}: the job waits for one that has; cancel it where there is none"


def _is_known(counted: TaskCount, registry: Registry) -> bool:
    """A job that is not durable has its function in the memory of a process, under whatever name."""
    return not counted.is_durable or registry.has(counted.task)
