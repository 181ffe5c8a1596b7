"""An engine that a test drives: it runs jobs on request, by a clock that the test moves."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from asyncbg.core.clock import Clock, ManualClock
from asyncbg.core.supervisor import Loop
from asyncbg.engine import Job
from asyncbg.engine.worker import Worker
from asyncbg.errors import AsyncBGError, NotRunningError
from asyncbg.fastapi import AsyncBG
from asyncbg.settings import Settings
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.database_file import MEMORY

_DRAIN_S = 30.0


class ManualBG(AsyncBG):
    """An AsyncBG that runs jobs when :meth:`drain` is awaited, by a clock that advances only when it is moved.

    Delays, retries, schedules, leases and retention follow the clock; a task's ``timeout`` and the heartbeat of a
    stream use real time. An application with ``bg.lifespan`` may start while the engine runs, and shares it.
    """

    def __init__(self, settings: Settings | None = None, *, clock: Clock | None = None, **overrides: Any) -> None:
        """Create the engine as AsyncBG does, with a ManualClock unless ``clock`` is given."""
        super().__init__(settings, clock=clock or ManualClock(), **overrides)
        self._entered = 0
        self._hung_backends: list[SQLiteBackend] = []

    async def __aenter__(self) -> Self:
        """Start the engine unless it is running."""
        if not self.is_running:
            await self.start()
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the engine when the outermost context exits."""
        self._entered -= 1
        if self._entered:
            self._streams.reopen()
        else:
            await self.stop()

    def _begin_shutdown(self) -> None:
        """Close the streams of a stopping application; the engine continues if an outer context entered it."""
        if self._entered > 1:
            self._streams.drain()
        else:
            super()._begin_shutdown()

    async def start(self) -> None:
        """Start without a heartbeat thread: heartbeats are sent when jobs run, by the clock."""
        await super().start()
        self._parts.runner.stop_heartbeat()

    async def stop(self) -> None:
        """Stop the engine and close the hanging workers of :meth:`vanish`."""
        hung, self._hung_backends = self._hung_backends, []
        for backend in hung:
            await backend.close()
        await super().stop()

    def _loops(self, worker: Worker) -> Mapping[str, Loop]:
        """Return only the loop of event handlers; :meth:`drain` does the work of the others."""
        return {"handlers": self.bus.run_handlers}

    async def drain(self, *, timeout_s: float = _DRAIN_S) -> None:
        """Run all ready jobs, and the jobs they enqueue, until nothing is queued, due or running.

        Before that it does the work of the engine's loops: due schedules are fired, jobs of lost workers are recovered,
        old jobs are purged. Event handlers have processed all events on return. Raises TimeoutError, which names the
        running jobs, after ``timeout_s`` seconds of real time.
        """
        worker = self._running_worker()
        try:
            async with asyncio.timeout(timeout_s) as limit:
                await self._catch_up()
                while await worker.run_ready():
                    await self.bus.join_handlers(timeout_s)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(await self._timeout_message(worker, timeout_s)) from None

    async def begin(self) -> None:
        """Claim ready jobs and run them concurrently with the test; await :meth:`drain` afterwards."""
        worker = self._running_worker()
        await self._catch_up()
        await worker.claim()

    async def crash(self) -> None:
        """Simulate ``kill -9``: release the process slot without settling running jobs. ``await bg.start()`` restarts.

        Within one process the simulation is incomplete: the ``finally`` blocks of coroutines run, though their events
        are not stored, and a plain function continues in its thread.
        """
        self._running_worker()
        dropped = self._parts.runner.abort()
        await self.backend.close()
        if dropped:
            await asyncio.wait(dropped, timeout=self.settings.runner.cancel_grace_s)
        await super().stop()  # hanging workers of vanish() stay open

    async def vanish(self, job: Job) -> None:
        """Let another worker on the same file claim ``job`` and hang, so that its lease expires with the clock.

        Raises AssertionError if ``job`` is not the next to run.
        """
        self._running_worker()
        if self._parts.database.path == MEMORY:
            raise NotRunningError("no other worker can open a database in memory; give bg a file")
        other = SQLiteBackend(Database(self._parts.database.path), clock=self.clock)
        await other.open()
        self._hung_backends.append(other)
        lease_s = self.settings.runner.lease_s
        other.beat(lease_s=lease_s)
        leases = (await other.claim(1, lease_s=lease_s)).leases
        await self._parts.relay.follow_log()
        if [lease.id for lease in leases] != [job.id]:
            found = leases[0].id if leases else "nothing"
            raise AssertionError(f"{job!r} is not the next job to run, {found} is; drain or cancel the jobs before it")

    def _running_worker(self) -> Worker:
        if self._parts.runner.worker is None or not self.is_running:
            raise NotRunningError("this engine is not running: use the fixture `bg`, `async with bg:` or bg.start()")
        return self._parts.runner.worker

    async def _catch_up(self) -> None:
        """Do the periodic work of the engine's loops once."""
        self._beat()
        await self._parts.maintenance.run_once()

    def _beat(self) -> None:
        """Send the heartbeats of the elapsed time: a moved clock is elapsed time, not a suspended machine."""
        lease_s, now_ms = self.settings.runner.lease_s, self.clock.monotonic_ms()
        quarter_ms = int(lease_s * 250)
        for ago_ms in range(5 * quarter_ms, -1, -quarter_ms):
            self.backend.beat(lease_s=lease_s, at_ms=now_ms - ago_ms)

    async def _timeout_message(self, worker: Worker, timeout_s: float) -> str:
        names = []
        for job_id in sorted(worker.job_ids)[:5]:
            try:
                names.append(f"{(await self.get(job_id)).task} ({job_id})")
            except AsyncBGError:
                names.append(job_id)
        running = ", ".join(names) or "no job at this moment, but jobs enqueue new jobs"
        return f"drain did not finish in {timeout_s:g} s; running: {running}. Release what they wait for first"
