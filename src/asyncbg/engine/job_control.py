"""Job control: get, wait for, watch, cancel and retry jobs by id."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from asyncbg.bus import EventBus, Subscription
from asyncbg.core.event import Event, EventFilter
from asyncbg.core.job import LONGEST_MESSAGE, Attempt, JobRecord, JobState, redact_for
from asyncbg.core.stored_text import make_storable
from asyncbg.engine.context import CurrentJob
from asyncbg.engine.registry import InMemoryJobs
from asyncbg.engine.runner import Runner
from asyncbg.errors import JobNotFoundError, TracebackError
from asyncbg.privacy import redact
from asyncbg.store.base import Backend

_PAGE = 200
_RECHECK_S = 0.5


class JobControl:
    """Inspects and controls any job, in the store first, then in the worker if the job runs in this process."""

    def __init__(self, backend: Backend, bus: EventBus, runner: Runner, in_memory: InMemoryJobs) -> None:
        self._backend = backend
        self._bus = bus
        self._runner = runner
        self._in_memory = in_memory

    async def get(self, job_id: str) -> JobRecord:
        """Return one job, with the latest progress. Raise JobNotFoundError."""
        record = await self._backend.get(job_id)
        if record is None:
            raise JobNotFoundError(job_id)
        running = self._runner.worker.job(job_id) if self._runner.worker is not None else None
        if running is not None and running.progress is not None and _is_attempt_of(running, record):
            return replace(record, progress=running.redacted_progress)
        return record

    async def wait(self, job_id: str, timeout_s: float | None = None, *, through_shutdown: bool = False) -> JobRecord:
        """Wait for the job's final state. Return the latest record, final or not, after ``timeout_s`` seconds.

        At shutdown it returns at once, so that long polls end, unless ``through_shutdown`` is set.
        """
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        with self._bus.expect_final(job_id) as final:
            while True:
                record = await self.get(job_id)
                left_s = _RECHECK_S if deadline_s is None else deadline_s - loop.time()
                if record.state.is_final or left_s <= 0 or (self._runner.is_draining and not through_shutdown):
                    return record
                await final.wait(min(left_s, _RECHECK_S))

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """Return the latest attempts of a job, oldest first. Raise JobNotFoundError."""
        await self.get(job_id)
        return await self._backend.attempts(job_id)

    async def cause_of(self, record: JobRecord) -> BaseException | None:
        """Return the exception of a failed job if it ran recently in this process, else its stored traceback."""
        error = self._bus.errors.find(record.id, record.attempt)
        if error is not None:
            return error
        attempts = await self._backend.attempts(record.id)
        text = attempts[-1].traceback if attempts else None
        return None if text is None else TracebackError(record.id, text)

    async def watch(self, job_id: str) -> AsyncIterator[Event]:
        """Iterate over a job's events from the first to the final one, progress included. Raise JobNotFoundError.

        A job that was retried manually has several final events; the last one ends the iteration.
        """
        await self.get(job_id)
        wanted = EventFilter(jobs=frozenset({job_id}))
        reached = 0
        with self._bus.subscribe(wanted) as live:
            while True:
                live.reset()
                stored, reached = await self._backend.events(after_seq=reached, wanted=wanted, limit=_PAGE)
                for event in stored:
                    yield event
                if len(stored) == _PAGE:
                    continue
                if stored and stored[-1].is_final and (await self.get(job_id)).state.is_final:
                    return
                async for event in self._live(live, reached):
                    reached = event.seq or reached
                    yield event
                    if event.is_final:
                        return
                if live.closing:
                    return

    @staticmethod
    async def _live(live: Subscription, reached: int) -> AsyncIterator[Event]:
        """Yield events published after ``reached``, until the subscription lags or the bus drains."""
        while not live.lagging:
            for event in live.take():
                if not event.seq or event.seq > reached:
                    yield event
            if live.closing:
                return
            await live.wait()

    async def cancel(self, job_id: str, reason: str = "") -> JobState:
        """Cancel a job: at once if it is not running, else by cancelling its coroutine.

        Raise JobNotFoundError, JobStateError.
        """
        reason = await self._without_people(job_id, reason)
        state = await self._backend.cancel(job_id, reason)
        if state is JobState.RUNNING and self._runner.worker is not None:
            self._runner.worker.cancel(job_id, reason)
        else:
            self._in_memory.drop(job_id)
        return state

    async def _without_people(self, job_id: str, reason: str) -> str:
        """Redact a reason, since it is shown with the job: its personal arguments and anything that looks personal."""
        record = await self._backend.get(job_id) if reason else None
        return redact(make_storable(reason, most=LONGEST_MESSAGE)) if record is None else redact_for(record, reason)

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again; its events are kept. Raise JobNotFoundError, JobStateError."""
        return await self._backend.retry(job_id)


def _is_attempt_of(running: CurrentJob, record: JobRecord) -> bool:
    """Whether the attempt running here is the job's current one: it may have lost its lease."""
    return record.state is JobState.RUNNING and record.attempt == running.attempt
