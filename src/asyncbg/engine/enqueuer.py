"""Accepting jobs: gives a validated call an id, reserves backlog capacity and stores the job."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiosqlite

from asyncbg.core.clock import Clock
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import JobState, NewJob
from asyncbg.engine.backlog import Backlog
from asyncbg.engine.executor import Executor
from asyncbg.engine.job_control import JobControl
from asyncbg.engine.job_handle import Job
from asyncbg.engine.options import NO_OPTIONS, CallOptions
from asyncbg.engine.registry import InMemoryJobs, Registry
from asyncbg.engine.runner import Runner
from asyncbg.engine.schedule import SCHEDULE
from asyncbg.engine.task import TaskDefinition
from asyncbg.errors import NotRunningError, OverloadedError, TransactionError
from asyncbg.store.base import Backend, Enqueued

_QUEUED = (JobState.QUEUED, JobState.QUEUED.value)
_SCHEDULED = (JobState.SCHEDULED, JobState.SCHEDULED.value)


@dataclass(slots=True)
class PreparedJob:
    """A validated job that has an id and is not stored yet."""

    new: NewJob
    job: Job
    definition: TaskDefinition
    bound: dict[str, Any] = field(repr=False)


class Enqueuer:
    """Accepts the jobs of one engine."""

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        control: JobControl,
        *,
        runner: Runner,
        executor: Executor,
        backlog: Backlog,
        in_memory: InMemoryJobs,
        ids: IdGenerator,
        clock: Clock,
        max_args_bytes: int,
    ) -> None:
        self._max_args_bytes = max_args_bytes
        self.registry = registry
        self.executor = executor
        """Runs tasks that are awaited inline."""
        self._backend = backend
        self._control = control
        self._runner = runner
        self._backlog = backlog
        self._in_memory = in_memory
        self._ids = ids
        self._clock = clock

    def prepare(
        self, definition: TaskDefinition, bound: dict[str, Any], options: CallOptions, *, durable: bool = True
    ) -> PreparedJob:
        """Return the job of a validated call, with its id; nothing is stored yet. Raise ArgumentsError."""
        if definition.arguments.injected:
            self.executor.require_met(definition, bound)
        task = definition.options
        text = None
        if durable:
            text = definition.arguments.dump(bound, task=definition.name, max_bytes=self._max_args_bytes)
        now_ms = self._clock.now_ms()
        run_at_ms = now_ms if options is NO_OPTIONS else options.run_at_ms(now_ms)
        job_id = self._ids.new()
        state, state_text = _SCHEDULED if run_at_ms > now_ms else _QUEUED
        new = NewJob(
            job_id, definition.name, task.queue, options.owner, job_id,
            json.dumps(list(options.tags)) if options.tags else "[]", state_text,
            task.priority if options.priority is None else options.priority,
            0 if text is None else 1, 1 if task.at_most_once else 0, 0, task.retry.retries,
            text or "{}", definition.arguments.personal, now_ms, run_at_ms,
            self._backend.place if text is None else None,
            options.idempotency_key, options.fingerprint,
            None if definition.key is None else definition.unique_key(bound), 0 if options.at is None else 1,
        )  # fmt: skip
        job = Job(self._control, job_id, task=definition.name, state=state, batch=job_id, owner=options.owner)
        return PreparedJob(new, job, definition, bound)

    async def accept(self, prepared: Sequence[PreparedJob], *, stop_on_failure: bool = False) -> Enqueued:
        """Store prepared jobs as one batch that runs in order. Return when they are on disk.

        Raise NotRunningError, OverloadedError, IdempotencyError, DatabaseError; nothing is stored then.
        """
        self._require_running()
        owners = await self._reserve(prepared)
        if len(prepared) > 1:
            _chain(prepared, stop_on_failure)
        for one in prepared:
            if not one.new.durable:
                self._in_memory.add(one.new.id, one.definition, one.bound)
        try:
            enqueued = await self._backend.enqueue([one.new for one in prepared])
        except BaseException:
            for one in prepared:
                self._in_memory.drop(one.new.id)
            self._backlog.confirm(len(owners), owners)
            raise
        self._backlog.confirm(
            len(owners), [owner for owner, created in zip(owners, enqueued.created, strict=False) if not created]
        )
        if not all(enqueued.created):
            await self._adopt_earlier(prepared, enqueued)
        return enqueued

    async def _reserve(self, prepared: Sequence[PreparedJob]) -> Sequence[str]:
        """Reserve backlog capacity. Return the owners reserved for; a repeat needs none. Raise OverloadedError."""
        owners = [one.new.owner for one in prepared]
        try:
            self._backlog.reserve(owners)
        except OverloadedError:
            if not await self._are_known(prepared):
                raise
            return ()
        return owners

    async def _are_known(self, prepared: Sequence[PreparedJob]) -> bool:
        """Whether every job was accepted before under its idempotency key."""
        for one in prepared:
            key = one.new.idempotency_key
            if key is None or await self._backend.find_by_key(one.new.owner, key) is None:
                return False
        return True

    async def accept_within(self, connection: aiosqlite.Connection, prepared: PreparedJob) -> Job:
        """Store a prepared job in the transaction open on ``connection``; it exists once that is committed.

        Raises TransactionError, NotRunningError, OverloadedError, IdempotencyError, DatabaseError.
        """
        self._require_running()
        new, job = prepared.new, prepared.job
        if not new.durable:
            raise TransactionError(
                f"{new.task} is not durable, and only database writes can be rolled back; "
                "pass a module-level function and plain arguments"
            )
        self._backlog.reserve((new.owner,))
        record = None
        try:
            record = await self._backend.enqueue_within(connection, new)
        finally:
            is_new = record is not None and record.id == new.id
            self._backlog.confirm(1, () if is_new else (new.owner,))
        job.id, job.state, job.batch, job.created = record.id, record.state, record.batch, is_new
        return job

    def _require_running(self) -> None:
        if not self._runner.is_running:
            raise NotRunningError(
                "asyncbg is not running: pass FastAPI(lifespan=bg.lifespan), or use `async with bg:` in a script"
            )

    async def _adopt_earlier(self, prepared: Sequence[PreparedJob], enqueued: Enqueued) -> None:
        """Point the handles of repeated jobs to the earlier jobs that their idempotency keys match."""
        for one, job_id, created in zip(prepared, *enqueued, strict=True):
            if not created:
                self._in_memory.drop(one.new.id)
                record = await self._control.get(job_id)
                job = one.job
                job.id, job.state, job.batch, job.created = record.id, record.state, record.batch, False

    async def fire(self, schedule: str, task: str, slot_ms: int) -> None:
        """Store the job of one slot, unless another process already has."""
        definition = self.registry.get(task)
        options = CallOptions(idempotency_key=f"{SCHEDULE}/{task}/{slot_ms}", tags=(SCHEDULE,), owner=SCHEDULE)
        prepared = self.prepare(definition, definition.bind((), {}), options)
        self._backlog.reserve((SCHEDULE,))
        stored = False
        try:
            stored = await self._backend.fire(schedule, slot_ms, prepared.new)
        finally:
            self._backlog.confirm(1, () if stored else (SCHEDULE,))


def _chain(prepared: Sequence[PreparedJob], stop_on_failure: bool) -> None:
    """Make the jobs one batch, named by the first; each waits for the one before it."""
    batch = prepared[0].new.id
    for position, one in enumerate(prepared):
        state = one.new.state if position == 0 else JobState.WAITING.value
        one.new = one.new._replace(batch=batch, state=state, stop_on_failure=int(stop_on_failure))
        one.job.batch, one.job.state = batch, JobState(state)
