"""An engine that runs nothing by itself: a test says when, and what the time is."""

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
    """An AsyncBG whose jobs run when :meth:`drain` is awaited, by a clock that stands still until it is moved.

    Delays, retries, schedules, leases and retention follow the clock; a task's ``timeout`` and the heartbeat of a
    stream are in real time. An application whose lifespan is ``bg.lifespan`` may start while it runs: it joins it.
    """

    def __init__(self, settings: Settings | None = None, *, clock: Clock | None = None, **overrides: Any) -> None:
        """As AsyncBG, with a ManualClock unless ``clock`` is given."""
        super().__init__(settings, clock=clock or ManualClock(), **overrides)
        self._entered = 0
        self._hung_backends: list[SQLiteBackend] = []

    async def __aenter__(self) -> Self:
        """Start, unless it runs already."""
        if not self.is_running:
            await self.start()
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, unless somebody else entered before and is still there."""
        self._entered -= 1
        if self._entered:
            self._streams.reopen()
        else:
            await self.stop()

    def _begin_shutdown(self) -> None:
        """End the streams of an application that stops; the engine goes on where it was entered before."""
        if self._entered > 1:
            self._streams.drain()
        else:
            super()._begin_shutdown()

    async def start(self) -> None:
        """Start; the heart beats by the clock, when jobs are run."""
        await super().start()
        self._parts.runner.stop_heartbeat()

    async def stop(self) -> None:
        """Stop, and let the workers that hang be gone too."""
        hung, self._hung_backends = self._hung_backends, []
        for backend in hung:
            await backend.close()
        await super().stop()

    def _loops(self, worker: Worker) -> Mapping[str, Loop]:
        """Only events are told by themselves; the rest is what :meth:`drain` does."""
        return {"handlers": self.bus.run_handlers}

    async def drain(self, *, timeout_s: float = _DRAIN_S) -> None:
        """Run all that is ready, and what it leads to, until nothing is queued, due or running.

        First it does what the loops of a running engine would have done by now: due slots of schedules are fired,
        jobs of lost workers taken up, old jobs purged. Event handlers have seen everything when it returns.
        Raises TimeoutError, which names the jobs that still run, after ``timeout_s`` seconds of real time.
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
        """Claim what is ready and let it run beside the test, which waits for a sign of the task's own; then drain."""
        worker = self._running_worker()
        await self._catch_up()
        await worker.claim()

    async def crash(self) -> None:
        """Be gone as after ``kill -9``: the place is let go, nothing that ran is settled. ``await bg.start()`` again.

        In one process not everything dies: the ``finally`` blocks of coroutines run, though what they tell asyncbg is
        not stored, and a plain function goes on in its thread.
        """
        self._running_worker()
        dropped = self._parts.runner.abort()
        await self.backend.close()
        if dropped:
            await asyncio.wait(dropped, timeout=self.settings.runner.cancel_grace_s)
        await super().stop()  # workers that hang elsewhere go on hanging

    async def vanish(self, job: Job) -> None:
        """Let another worker on the same file claim ``job`` and hang: its lease lapses when the clock has moved on.

        Raises AssertionError where ``job`` is not the next to run.
        """
        self._running_worker()
        if self._parts.database.path == MEMORY:
            raise NotRunningError("nobody else can come to a database in memory; give bg a file")
        other = SQLiteBackend(Database(self._parts.database.path), clock=self.clock)
        await other.open()
        self._hung_backends.append(other)
        lease_s = self.settings.runner.lease_s
        other.beat(lease_s=lease_s)
        leases = (await other.claim(1, lease_s=lease_s)).leases
        await self._parts.relay.follow_log()
        if [lease.id for lease in leases] != [job.id]:
            found = leases[0].id if leases else "nothing"
            raise AssertionError(f"{job!r} is not the next job to run, {found} is; drain or cancel what is before it")

    def _running_worker(self) -> Worker:
        if self._parts.runner.worker is None or not self.is_running:
            raise NotRunningError("this engine is not running: use the fixture `bg`, `async with bg:` or bg.start()")
        return self._parts.runner.worker

    async def _catch_up(self) -> None:
        """What the loops of a running engine do every now and then, in one go."""
        self._beat()
        await self._parts.maintenance.run_once()

    def _beat(self) -> None:
        """Beat as it would have until now: a clock that was moved is time gone by, not a machine that stood still."""
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
        running = ", ".join(names) or "no job at this moment, but jobs make new jobs"
        return f"drain did not come to an end in {timeout_s:g} s; running: {running}. Open what they wait for first"
