"""The protocol of a store of jobs and events, which every backend implements and one test suite checks."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import aiosqlite

from asyncbg.core.event import Event, EventFilter
from asyncbg.core.job import Attempt, JobRecord, JobState, Lease, NewJob, Outcome
from asyncbg.store.sqlite.database import Guard


class Enqueued(NamedTuple):
    """The result of one enqueue: for each job its id, and whether it is new (False: the earlier job of its key)."""

    ids: tuple[str, ...]
    created: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs to list, newest first; None or empty matches all. ``before_n`` is the keyset cursor.

    Arguments and results of more than ``most_value_bytes`` are not read: the record holds their sizes instead.
    """

    states: frozenset[JobState] = frozenset()
    task: str | None = None
    queue: str | None = None
    tag: str | None = None
    batch: str | None = None
    owner: str | None = None
    before_n: int | None = None
    limit: int = 50
    most_value_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """Claimed jobs, and when the next scheduled job is due (None: none is)."""

    leases: Sequence[Lease]
    next_due_ms: int | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of one attempt: its lease, its outcome, the last progress (JSON) if it changed."""

    lease: Lease
    outcome: Outcome
    progress: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCount:
    """The number of jobs of a task in one of the states before running."""

    task: str
    is_durable: bool
    state: JobState
    many: int


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The part of the event log that is complete: ``first_seq`` to ``last_seq``, both inclusive.

    Some events before ``first_seq`` are purged. The events of a job are purged with the job, never before it.
    """

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The changes that other processes made: the end of the log, and progress, which is not in the log.

    ``running`` and ``ended`` are progress events of jobs that ran elsewhere: the latest of each whose progress was
    reported after the given report, split by whether the attempt still ran when ``last_seq`` was read.
    """

    last_seq: int
    last_report: int
    running: Sequence[Event]
    ended: Sequence[Event]


class Backend(Protocol):
    """A durable store of jobs and their events. Every change of a job and its event are one transaction.

    ``on_commit`` is called on the event loop with the events of each commit, in the order of ``seq``, before the
    callers that await that commit resume. ``on_progress`` is called first, with the latest progress of each job in the
    commit; progress of an attempt that has lost its lease is neither stored nor published.
    """

    epoch: str
    on_commit: Callable[[Sequence[Event]], None]
    on_progress: Callable[[Sequence[Event]], None]

    @property
    def place(self) -> str:
        """The name of this process's slot at the store."""
        ...

    async def open(self) -> None:
        """Connect, migrate, acquire a process slot. Raises DatabaseError."""
        ...

    async def close(self) -> None:
        """Commit what is pending, then close every connection and thread."""
        ...

    async def enqueue(self, jobs: Sequence[NewJob]) -> Enqueued:
        """Store one batch; returns when it is on disk. Raises OverloadedError, IdempotencyError, DatabaseError."""
        ...

    async def slots(self, names: Collection[str], *, since_ms: int, latest_ms: int) -> Mapping[str, int]:
        """Return the last slot fired of each schedule; a new one, or one beyond ``latest_ms``, becomes ``since_ms``."""
        ...

    async def fire(self, schedule: str, slot_ms: int, job: NewJob) -> bool:
        """Store the job of a slot and advance the schedule. False: it was fired before, or the job's key is taken."""
        ...

    async def enqueue_within(self, connection: aiosqlite.Connection, job: NewJob) -> JobRecord:
        """Store a job in the open transaction of the caller's own connection; the caller commits or rolls back.

        Return the job, or the earlier one of its key. Raises TransactionError, IdempotencyError, DatabaseError.
        """
        ...

    async def claim(self, limit: int, *, lease_s: float, skip: Collection[str] = ()) -> Claimed:
        """Promote jobs that are due, then claim up to ``limit`` queued jobs, highest priority first, then oldest first.

        Jobs of the tasks in ``skip`` are left to other processes.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """End attempts and release the next jobs of their batches. False: that lease had lapsed, nothing changed."""
        ...

    async def renew(self, *, lease_s: float) -> Mapping[str, str | None]:
        """Renew the leases of this process. Return its running jobs: id → reason if a cancel is requested."""
        ...

    def beat(self, *, lease_s: float, at_ms: int | None = None) -> None:
        """Write the heartbeat of this process, so that none of its leases lapses for ``lease_s`` seconds.

        ``at_ms`` is a monotonic time other than now, for tests that move the clock by hand.

        Called from a separate thread: it must not need the event loop, which a task may be blocking.
        """
        ...

    def write_note(self, text: str) -> None:
        """Write a note of up to 4 kB for ``asyncbg doctor``. Thread-safe."""
        ...

    async def save_counters(self, text: str) -> None:
        """Save this process's counters for the other processes, replacing the previous ones. Raises OSError."""
        ...

    async def load_counters(self) -> tuple[str | None, Sequence[str]]:
        """Return the counters saved for this slot, first by its former process, and for the others. Raises OSError."""
        ...

    async def processes(self) -> int:
        """Return how many processes run jobs here now. Raises OSError."""
        ...

    async def follow_clock(self) -> int:
        """Move delays and retries along with a jump of the wall clock. Return the jump in milliseconds."""
        ...

    async def report(self, lease: Lease, progress: str) -> bool:
        """Keep the latest progress (JSON) on the job. False: the lease had lapsed."""
        ...

    def record(self, lease: Lease, event_type: str, data: str) -> Awaitable[bool]:
        """Store an event that the task publishes. False: the lease had lapsed.

        Calls take effect in their order, whenever they are awaited.
        """
        ...

    def guard(self, lease: Lease) -> Guard:
        """Return a check for a transaction in the same database: raises LeaseLostError where the lease has lapsed."""
        ...

    def guard_ended(self, job_id: str) -> Guard:
        """Return a check for clean-up after a job. It raises JobStateError where the job is not final any more."""
        ...

    async def holds(self, lease: Lease) -> bool:
        """Whether the lease still holds; for effects outside the database."""
        ...

    async def cancel(self, job_id: str, reason: str) -> JobState:
        """Cancel a job, or request it of the process that runs it. Raises JobNotFoundError, JobStateError."""
        ...

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again; its history is kept. Raises JobNotFoundError, JobStateError."""
        ...

    async def quarantine(self) -> Sequence[str]:
        """Fail the open jobs whose rows cannot be read, which block the claims of others. Return their ids."""
        ...

    async def rescue(self) -> int:
        """Rescue the jobs of dead processes and lapsed leases. Return how many."""
        ...

    async def purge(self, *, before_ms: int, limit: int) -> int:
        """Delete up to ``limit`` final jobs finished before ``before_ms``, and their events. Return how many."""
        ...

    async def get(self, job_id: str) -> JobRecord | None:
        """Return one job, or None."""
        ...

    async def find_by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """Return the job that was submitted under this idempotency key, or None."""
        ...

    async def list(self, query: JobQuery) -> Sequence[JobRecord]:
        """Return jobs, newest first."""
        ...

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """Return the latest attempts of a job, oldest first; none where there is no such job."""
        ...

    async def events(
        self, *, after_seq: int, wanted: EventFilter, limit: int, up_to_seq: int | None = None
    ) -> tuple[Sequence[Event], int]:
        """Return stored events after ``after_seq`` that ``wanted`` matches, in order, and the seq the scan reached.

        The scan is bounded. Fewer than ``limit`` events and a reached seq below the last one mean: call again.
        """
        ...

    async def position(self) -> LogPosition:
        """Return which part of the event log is stored."""
        ...

    async def tail(self, *, after_report: int | None) -> Tail:
        """Return the end of the log, and the progress that other processes reported after ``after_report``."""
        ...

    async def counts(self) -> Mapping[JobState, int]:
        """Count the jobs in each state that is not final."""
        ...

    async def waiting(self) -> Sequence[TaskCount]:
        """Count the jobs of each task that have not started, by state; tasks without any are left out."""
        ...

    async def waiting_of(self, owners: Collection[str], most: int) -> Mapping[str, int]:
        """Count the jobs of each of these owners that have not started, up to ``most``."""
        ...

    async def owners(self) -> Sequence[str]:
        """Return the owners of jobs that are not final."""
        ...

    async def probe(self) -> None:
        """Prove that a write and a claim work; both are rolled back. Raises DatabaseError."""
        ...
