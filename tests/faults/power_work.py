"""What the store is at when the power goes: it accepts, runs, steers and purges, and every word of it is noted."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncbg.core.clock import ManualClock
from asyncbg.core.event import Event
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import Cancelled, Done, Failed, JobFailure, JobState, Lease, NewJob, Outcome, Released, Retry
from asyncbg.errors import JobStateError
from asyncbg.store.base import Settlement
from asyncbg.store.sqlite import SQLiteBackend
from tests.faults.power_disk import Files
from tests.faults.power_shim import Log, WatchedDatabase, watched

LEASE_S = 30.0
DATABASE = "jobs.db"


@dataclass(frozen=True, slots=True)
class Asked:
    """Jobs were handed to the store; from here on they may be in it."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Promised:
    """The store answered that a job reached a state."""

    job: str
    state: JobState


@dataclass(frozen=True, slots=True)
class Told:
    """Events were published."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Purging:
    """From here on, the jobs that are final now may be gone."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a store did on a watched disk, in order, the files it began with, and the time at the end."""

    log: Log
    files: Files
    now_ms: int


async def record(
    directory: Path, rng: random.Random, *, now_ms: int, synchronous: str = "FULL", rounds: int = 60
) -> Recording:
    """Let a store work in ``directory``, on what is there, closed and opened again in between."""
    log: Log = []
    clock = ManualClock(now_ms)
    files = read_files(directory)
    with watched(log) as vfs:
        for _ in range(3):
            pages = rng.choice([10, 30, 100])  # checkpoints come often
            pragmas = (f"PRAGMA synchronous = {synchronous}",)
            database = WatchedDatabase(str(directory / DATABASE), vfs=vfs, log=log, pragmas=pragmas, pages=pages)
            work = Work(SQLiteBackend(database, clock=clock), clock, log, rng)
            await work.run(rounds // 3)
    return Recording(log, files, clock.now_ms())


def read_files(directory: Path) -> Files:
    """The files of the database, by name."""
    names = (f"{DATABASE}{suffix}" for suffix in ("", "-wal", "-journal"))
    return {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}


class Work:
    """Does with a store what a busy application does with it."""

    def __init__(self, backend: SQLiteBackend, clock: ManualClock, log: Log, rng: random.Random) -> None:
        """Work on ``backend``, which must not be open yet."""
        self.backend, self.clock, self.log, self.rng = backend, clock, log, rng
        self.ids = IdGenerator(clock)
        self.known: list[str] = []
        self.held: list[Lease] = []
        self.step = 0
        backend.on_commit = self._told

    async def run(self, rounds: int) -> None:
        """Work for some rounds: what is done in one is done at the same time, so that commits are shared."""
        acts: Sequence[Callable[[], Awaitable[None]]] = (
            self._accept, self._accept, self._accept_batch, self._begin, self._end, self._end, self._progress,
            self._publish, self._cancel, self._retry, self._fire, self._renew,
        )  # fmt: skip
        await self.backend.open()
        for _ in range(rounds):
            await asyncio.gather(*(act() for act in self.rng.choices(acts, k=self.rng.randrange(1, 9))))
            self.clock.advance(seconds=self.rng.choice([0, 0, 1, 10]))
            if self.rng.random() < 0.1:
                await self._purge()
        await self.backend.close()

    def _told(self, events: Sequence[Event]) -> None:
        self.log.append(Told(tuple(events)))

    def _promised(self, job: str, state: JobState) -> None:
        self.log.append(Promised(job, state))

    def _job(self) -> NewJob:
        job_id, now_ms, delay_s = self.ids.new(), self.clock.now_ms(), self.rng.choice([0, 0, 0, 3])
        return NewJob(
            id=job_id, task="greet", queue="default", owner=self.rng.choice(["ada", "bob"]), batch=job_id, tags="[]",
            state=str(JobState.SCHEDULED if delay_s else JobState.QUEUED), priority=self.rng.randrange(3), durable=1,
            at_most_once=self.rng.randrange(2), stop_on_failure=self.rng.randrange(2), retries=2,
            args=f'{{"name": "{"x" * self.rng.choice([3, 50, 700, 9_000])}"}}', personal="{}", created_at_ms=now_ms,
            run_at_ms=now_ms + delay_s * 1000, idempotency_key=self.rng.choice([None, job_id]),
        )  # fmt: skip

    async def _enqueue(self, jobs: Sequence[NewJob]) -> None:
        self.log.append(Asked(tuple(job.id for job in jobs)))
        await self.backend.enqueue(jobs)
        for job in jobs:
            self._promised(job.id, JobState(job.state))
            self.known.append(job.id)

    async def _accept(self) -> None:
        await self._enqueue([self._job()])

    async def _accept_batch(self) -> None:
        first, *others = (self._job() for _ in range(self.rng.randrange(2, 30)))
        waiting = JobState.WAITING.value
        await self._enqueue([first, *(job._replace(batch=first.id, state=waiting) for job in others)])

    async def _begin(self) -> None:
        claimed = await self.backend.claim(self.rng.randrange(1, 12), lease_s=LEASE_S)
        for lease in claimed.leases:
            self._promised(lease.id, JobState.RUNNING)
        self.held += claimed.leases

    async def _end(self) -> None:
        ending = [self.held.pop() for _ in range(self.rng.randrange(len(self.held) + 1))]
        settlements = [Settlement(lease, self._outcome()) for lease in ending]
        for settled, kept in zip(settlements, await self.backend.settle(settlements), strict=True):
            match settled.outcome:
                case Done() if kept:
                    self._promised(settled.lease.id, JobState.SUCCEEDED)
                case Failed() if kept:
                    self._promised(settled.lease.id, JobState.FAILED)

    def _outcome(self) -> Outcome:
        error = JobFailure(type="ValueError", message="no such name")
        soon_ms = self.clock.now_ms() + 2_000
        result = f'"{"y" * self.rng.choice([1, 6_000])}"'
        outcomes: Sequence[Outcome] = (
            Done(result), Done("null"), Failed(error), Retry(error, soon_ms), Cancelled("enough"), Released("a stop"),
        )  # fmt: skip
        return self.rng.choice(outcomes)

    async def _progress(self) -> None:
        for lease in self.rng.sample(self.held, min(3, len(self.held))):
            self.step += 1
            await self.backend.report(lease, f'{{"current": {self.step}, "message": ""}}')

    async def _publish(self) -> None:
        for lease in self.rng.sample(self.held, min(3, len(self.held))):
            await self.backend.record(lease, "greeting.sent", '{"to": "ada"}')

    async def _cancel(self) -> None:
        await self._steer(lambda job_id: self.backend.cancel(job_id, "enough"))

    async def _retry(self) -> None:
        await self._steer(self.backend.retry)

    async def _steer(self, ask: Callable[[str], Awaitable[JobState]]) -> None:
        for job_id in self.rng.sample(self.known, min(2, len(self.known))):
            try:
                state = await ask(job_id)
            except JobStateError:
                continue
            if state is not JobState.RUNNING:
                self._promised(job_id, state)

    async def _fire(self) -> None:
        job = self._job()
        self.log.append(Asked((job.id,)))
        if await self.backend.fire("hourly", self.clock.now_ms(), job):
            self._promised(job.id, JobState(job.state))

    async def _renew(self) -> None:
        await self.backend.renew(lease_s=LEASE_S)

    async def _purge(self) -> None:
        """Alone, so that it is known which jobs may be gone: those that are final by now."""
        self.log.append(Purging())
        await self.backend.purge(before_ms=self.clock.now_ms() - 3_000, limit=20)
        present = await asyncio.gather(*(self.backend.get(job_id) for job_id in self.known))
        self.known = [record.id for record in present if record is not None]
