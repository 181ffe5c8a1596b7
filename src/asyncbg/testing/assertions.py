"""Assertions on enqueued jobs; a failure lists the jobs that exist."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic_core import to_jsonable_python

from asyncbg.core.job import JobRecord, JobState
from asyncbg.engine import Engine, Task, TaskCall
from asyncbg.engine.target import prepare_target
from asyncbg.store.base import JobQuery

AnyTask: TypeAlias = "Task[..., Any] | TaskCall[Any] | Callable[..., Any] | str"
_MOST = 10_000
_SHOWN = 10


async def assert_enqueued(
    engine: Engine,
    task: AnyTask,
    *,
    args: Mapping[str, Any] | Sequence[Any] | None = None,
    state: JobState | str | None = None,
    tags: Collection[str] | None = None,
    owner: str | None = None,
    priority: int | None = None,
    delay_s: float | None = None,
    count: int | None = None,
) -> JobRecord:
    """Assert that a job of ``task`` with these attributes exists. Return the newest one.

    ``args`` is a mapping by parameter name, of which the job has at least those, or a sequence as in a call, with all
    arguments; a job that is not durable stores none. Without ``state``, jobs in every state match. ``delay_s`` is the
    time from its creation until it is due. ``count``, 1 or more, is the exact number of such jobs; without it, at least
    one. Raises AssertionError, which lists the existing jobs.
    """
    if count is not None and count < 1:
        raise ValueError("count must be 1 or more; for none use refute_enqueued")
    wanted = _Wanted.of(
        engine, task, args=args, state=state, tags=tags, owner=owner, priority=priority, delay_s=delay_s
    )
    records = await engine.backend.list(JobQuery(limit=_MOST))
    found = [record for record in records if wanted.fits(record)]
    if not found or (count is not None and len(found) != count):
        much = f"{count or 'at least one'} job{'s' if count and count > 1 else ''}"
        raise AssertionError(f"expected {much} of {wanted}, found {len(found)}; {_listed(records)}")
    return found[0]


async def refute_enqueued(
    engine: Engine,
    task: AnyTask,
    *,
    args: Mapping[str, Any] | Sequence[Any] | None = None,
    state: JobState | str | None = None,
    tags: Collection[str] | None = None,
    owner: str | None = None,
) -> None:
    """Assert that no job of ``task`` with these attributes exists. Raises AssertionError, which lists them."""
    wanted = _Wanted.of(engine, task, args=args, state=state, tags=tags, owner=owner)
    found = [record for record in await engine.backend.list(JobQuery(limit=_MOST)) if wanted.fits(record)]
    if found:
        raise AssertionError(f"expected no job of {wanted}; {_listed(found)}")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The expected attributes of a job; ``traits`` holds only those that were given."""

    task: str
    args: Mapping[str, Any] | None
    has_all_args: bool
    traits: Mapping[str, Any]

    @classmethod
    def of(
        cls, engine: Engine, task: AnyTask, *, args: Mapping[str, Any] | Sequence[Any] | None, **traits: Any
    ) -> "_Wanted":
        if isinstance(args, str | bytes):
            raise TypeError("args must be a mapping by parameter name or a sequence as in a call: args=['Ada']")
        if traits.get("state") is not None:
            traits["state"] = JobState(traits["state"])
        if traits.get("tags") is not None:
            traits["tags"] = frozenset(traits["tags"])
        named = {name: value for name, value in traits.items() if value is not None}
        if args is None or isinstance(args, Mapping):
            return cls(_name(task), None if args is None else to_jsonable_python(dict(args)), False, named)
        return cls(_name(task), _bound(engine, task, args), True, named)

    def fits(self, record: JobRecord) -> bool:
        if record.task != self.task or not all(_TRAITS[name](record, value) for name, value in self.traits.items()):
            return False
        has: dict[str, Any] = json.loads(record.args)
        if self.args is None:
            return True
        if self.has_all_args:
            return has == self.args
        return all(name in has and has[name] == value for name, value in self.args.items())

    def __str__(self) -> str:
        said = {} if self.args is None else {"args": dict(self.args)}
        words = [f"{name}={value!r}" for name, value in (said | dict(self.traits)).items()]
        return f"{self.task}({', '.join(words)})"


_TRAITS: Mapping[str, Callable[[JobRecord, Any], bool]] = {
    "state": lambda record, state: record.state is state,
    "tags": lambda record, tags: tags <= set(record.tags),
    "owner": lambda record, owner: record.owner == owner,
    "priority": lambda record, priority: record.priority == priority,
    "delay_s": lambda record, delay_s: record.run_at_ms - record.created_at_ms == round(delay_s * 1000),
}


def _name(task: AnyTask) -> str:
    """Return the name under which jobs of the task are stored."""
    match task:
        case str():
            return task
        case Task() | TaskCall():
            return task._definition.name
        case _:
            named = task if hasattr(task, "__qualname__") else type(task)
            return f"{named.__module__}:{named.__qualname__}"


def _bound(engine: Engine, task: AnyTask, args: Sequence[Any]) -> Mapping[str, Any]:
    """Return the arguments of a call as stored. Raises ArgumentsError if they do not fit the signature."""
    if isinstance(task, str):
        arguments = engine._parts.registry.get(task).arguments
        text = arguments.dump(arguments.bind(task, args, {}))
    else:
        text = prepare_target(engine._parts.enqueuer, task, args, {}).new.args
    bound: Mapping[str, Any] = json.loads(text or "{}")
    return bound


def _listed(records: Sequence[JobRecord]) -> str:
    """Describe the jobs, newest first."""
    if not records:
        return "no job was enqueued"
    lines = [f"  {record.task} {record.args} {record.state}" for record in records[:_SHOWN]]
    more = f"\n  and {len(records) - _SHOWN} more" if len(records) > _SHOWN else ""
    return "there are, newest first:\n" + "\n".join(lines) + more
