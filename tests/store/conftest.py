"""Every backend under test, opened empty, with a clock that is moved by hand."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from asyncbg.core.clock import ManualClock
from asyncbg.core.event import Event, EventFilter
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import Done, JobRecord, JobState, Lease, NewJob, Outcome
from asyncbg.privacy.encryption import KEY_BYTES, Encryption
from asyncbg.store.base import Backend, Settlement
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.database_file import MEMORY

LEASE_S = 30.0


@dataclass
class Store:
    """An open backend, its clock, and every event its commits told."""

    backend: Backend
    clock: ManualClock
    told: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Listen to the commits and count ids on the store's clock."""
        self.backend.on_commit = self.told.extend
        self.ids = IdGenerator(self.clock)

    def job(self, **changes: Any) -> NewJob:
        """A queued job of the task ``greet``, due now, but for the ``changes``; ``delay_s`` schedules it."""
        job_id, now_ms = self.ids.new(), self.clock.now_ms()
        delay_s = changes.pop("delay_s", 0)
        plain = NewJob(
            id=job_id, task="greet", queue="default", owner="ada", batch=job_id, tags="[]",
            state=str(JobState.SCHEDULED if delay_s else JobState.QUEUED), priority=0, durable=1, at_most_once=0,
            stop_on_failure=0, retries=0, args="{}", personal="{}", created_at_ms=now_ms,
            run_at_ms=now_ms + int(delay_s * 1000),
        )  # fmt: skip
        return plain._replace(**changes)

    def chain(self, count: int, **changes: Any) -> list[NewJob]:
        """The jobs of one batch: each but the first waits."""
        jobs = [self.job(**changes) for _ in range(count)]
        batch = jobs[0].id
        waiting = [job._replace(batch=batch, state=JobState.WAITING.value) for job in jobs[1:]]
        return [jobs[0], *waiting]

    async def add(self, **changes: Any) -> str:
        """Store one job; its id."""
        return (await self.backend.enqueue([self.job(**changes)])).ids[0]

    async def add_chain(self, count: int, **changes: Any) -> list[str]:
        """Store one batch; its ids."""
        return list((await self.backend.enqueue(self.chain(count, **changes))).ids)

    async def claim(self, limit: int = 10, *, skip: Collection[str] = ()) -> Sequence[Lease]:
        """Claim what is ready."""
        return (await self.backend.claim(limit, lease_s=LEASE_S, skip=skip)).leases

    async def claim_one(self) -> Lease:
        """Claim the only ready job."""
        (lease,) = await self.claim(1)
        return lease

    async def start(self, **changes: Any) -> Lease:
        """Store a job and claim it; nothing else may be ready."""
        await self.add(**changes)
        return await self.claim_one()

    async def settle(self, lease: Lease, outcome: Outcome | None = None, progress: str | None = None) -> bool:
        """End an attempt, with success unless told otherwise."""
        return (await self.backend.settle([Settlement(lease, outcome or Done("null"), progress)]))[0]

    async def record(self, job_id: str) -> JobRecord:
        """A job that must be there."""
        record = await self.backend.get(job_id)
        assert record is not None
        return record

    async def states(self, ids: Sequence[str]) -> list[str]:
        """The states of jobs."""
        return [(await self.record(job_id)).state.value for job_id in ids]

    async def log(self, **wanted: Any) -> list[Event]:
        """All stored events that a filter of these names takes."""
        events, _ = await self.backend.events(after_seq=0, wanted=EventFilter(**wanted), limit=4_000)
        return list(events)

    async def story(self, job_id: str) -> list[str]:
        """The types of a job's events in order."""
        return [event.type for event in await self.log(jobs=frozenset({job_id}))]


Opener = Callable[[ManualClock], Backend]


def sqlite_file(directory: Path) -> Opener:
    """SQLite in a file that several processes may share."""
    return lambda clock: SQLiteBackend(Database(str(directory / "jobs.db")), clock=clock)


def sqlite_memory(_: Path) -> Opener:
    """SQLite in memory: gone when it is closed."""
    return lambda clock: SQLiteBackend(Database(MEMORY), clock=clock)


def sqlite_sealed(directory: Path) -> Opener:
    """SQLite in a file that holds arguments and results as ciphertext."""
    return lambda clock: SQLiteBackend(
        Database(str(directory / "jobs.db")), clock=clock, encryption=Encryption([b"k" * KEY_BYTES])
    )


BACKENDS = [sqlite_file, sqlite_memory, sqlite_sealed]
SHARED_BACKENDS = [sqlite_file]


@asynccontextmanager
async def opened(opener: Opener, clock: ManualClock) -> AsyncIterator[Store]:
    """A store that is open until the block ends."""
    backend = opener(clock)
    await backend.open()
    try:
        yield Store(backend, clock)
    finally:
        await backend.close()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is moved."""
    return ManualClock()


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    async with opened(request.param(tmp_path), clock) as one:
        yield one


@pytest.fixture(params=SHARED_BACKENDS)
async def another(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Callable[[], Any]]:
    """Open one more store at the same place, as another process does: ``await another()``."""
    async with AsyncExitStack() as stack:

        async def open_one() -> Store:
            return await stack.enter_async_context(opened(request.param(tmp_path), clock))

        yield open_one
