"""The settler: writes the outcomes of attempts to the store in batches, and retries until they are on disk."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence

from asyncbg.core.error_log import ErrorLog, ends_task
from asyncbg.core.job import Failed, JobFailure, Released
from asyncbg.engine.failure import describe
from asyncbg.engine.registry import InMemoryJobs
from asyncbg.errors import DatabaseError, OutageError
from asyncbg.store.base import Backend, Settlement

logger = logging.getLogger("asyncbg")

_PAUSE_S = 0.5
_MAX_TRIES = 3
_UNWRITABLE = Failed(JobFailure(type="UnwritableError", message="its outcome cannot be stored; see the log"))


class Settler:
    """Writes the outcomes that the worker adds. Where ``is_stopping`` is true, failed writes are not retried.

    ``quarantine`` fails the jobs whose rows cannot be read.
    """

    def __init__(
        self,
        backend: Backend,
        in_memory: InMemoryJobs,
        *,
        is_stopping: Callable[[], bool],
        quarantine: Callable[[], Awaitable[None]],
        errors: ErrorLog,
    ) -> None:
        self._backend = backend
        self._in_memory = in_memory
        self._is_stopping = is_stopping
        self._quarantine = quarantine
        self._errors = errors
        self._ended: list[Settlement] = []
        self.task: asyncio.Task[None] | None = None
        """The asyncio task that writes, or None."""

    def add(self, settlement: Settlement) -> None:
        """Queue this outcome; it is written after the current batch."""
        self._ended.append(settlement)
        self._begin()

    def clear(self) -> None:
        """Drop all outcomes that are not written, as a killed process does."""
        self._ended.clear()

    def _begin(self) -> None:
        if self.task is None and self._ended:
            self.task = asyncio.create_task(self._settle(), name="asyncbg-settle")
            self.task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        """Start another task where this one was cancelled from outside, so that no outcome is left."""
        if self.task is task:
            self.task = None
            task.get_loop().call_later(_PAUSE_S, self._begin)

    async def _settle(self) -> None:
        while self._ended:
            ended = self._ended[:]
            await self._write(ended)
            del self._ended[: len(ended)]
        self.task = None

    async def _write(self, ended: list[Settlement]) -> None:
        """Write outcomes, and retry while the database is unavailable and the process is not stopping."""
        for tries in itertools.count(1):
            if await self._try_write(ended, tries):
                return

    async def _try_write(self, ended: list[Settlement], tries: int) -> bool:
        """Try once. Return False where the write should be retried."""
        try:
            held = await self._backend.settle(ended)
        except DatabaseError as error:
            return await self._retry_or_drop(ended, error, tries)
        except BaseException as error:
            if ends_task(error):
                raise
            await self._write_separately(ended, error)
            return True
        self._release_settled(ended, held)
        return True

    async def _retry_or_drop(self, ended: list[Settlement], error: DatabaseError, tries: int) -> bool:
        """Return whether to stop retrying; wait if not. An error that is no outage may be due to one job's row."""
        is_outage = isinstance(error, OutageError)
        if not is_outage or self._is_stopping():
            logger.error("cannot settle %d jobs, of them %s: %s", len(ended), ended[0].lease.id, error)
        if self._is_stopping():
            return True
        if not is_outage:
            if len(ended) > 1 or tries > _MAX_TRIES:
                await self._write_separately(ended, error)
                return True
            await self._quarantine()
        await asyncio.sleep(_PAUSE_S)
        return False

    def _release_settled(self, ended: list[Settlement], held: Sequence[bool]) -> None:
        for settlement, is_held in zip(ended, held, strict=True):
            if not is_held:
                logger.warning("job %s lost its lease; its outcome is discarded", settlement.lease.id)
            if not settlement.lease.durable and not isinstance(settlement.outcome, Released):
                self._in_memory.drop(settlement.lease.id)

    async def _write_separately(self, ended: list[Settlement], error: BaseException) -> None:
        """Write each outcome separately: a job whose outcome cannot be written fails with the reason."""
        if len(ended) > 1:
            for settlement in ended:
                await self._write([settlement])
            return
        lease, outcome = ended[0].lease, ended[0].outcome
        self._errors.add("settle", error, "the outcome of job %s (%s) cannot be written", lease.id, lease.task)
        if outcome is not _UNWRITABLE:
            failed = _UNWRITABLE if isinstance(outcome, Failed) else Failed(describe(error))
            await self._write([Settlement(lease, failed)])
