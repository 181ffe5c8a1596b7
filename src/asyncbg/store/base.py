"""What a store of jobs and events must do: the protocol that every backend keeps and one suite checks."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import aiosqlite

from asyncbg.core.event import Event, EventFilter
from asyncbg.core.job import Attempt, JobRecord, JobState, Lease, NewJob, Outcome
from asyncbg.store.sqlite.database import Guard


class Enqueued(NamedTuple):
    """What became of one enqueue: for each job its id, and whether it is new (False: the earlier job of its key)."""

    ids: tuple[str, ...]
    created: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs to list, newest first; None or empty takes all. ``before_n`` is the keyset cursor.

    Arguments and results of more than ``most_value_bytes`` are not read: the record says how large they are.
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
    """Jobs taken, and when the next scheduled one is due (None: none is)."""

    leases: Sequence[Lease]
    next_due_ms: int | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of one attempt: its lease, what it ended in, the last progress (JSON) if it changed."""

    lease: Lease
    outcome: Outcome
    progress: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCount:
    """How many jobs of a task are in a state in which they have not begun."""

    task: str
    is_durable: bool
    state: JobState
    many: int


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The part of the event log that is whole: ``first_seq`` to ``last_seq``, both inclusive.

    Of events before ``first_seq`` some are purged. The events of one job are purged with the job, never before it.
    """

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What there is to follow of what other processes do: the end of the log, and progress, which is not in it.

    ``running`` and ``ended`` are progress events of jobs that ran elsewhere: the latest of each whose progress was
    reported after the report that was asked for, by whether the attempt still ran when ``last_seq`` was read.
    """

    last_seq: int
    last_report: int
    running: Sequence[Event]
    ended: Sequence[Event]


class Backend(Protocol):
    """A durable store of jobs and their events. Every change of a job and its event are one transaction.

    ``on_commit`` is called on the event loop with the events of each commit, in the order of ``seq``, before the
    callers that wait for that commit go on. ``on_progress`` is called before it, with the latest progress of each job
    that the commit has kept: of an attempt that has lost its lease nothing is kept, and nothing told.
    """

    epoch: str
    on_commit: Callable[[Sequence[Event]], None]
    on_progress: Callable[[Sequence[Event]], None]

    @property
    def place(self) -> str:
        """The name of this process's place at the store."""
        ...

    async def open(self) -> None:
        """Connect, migrate, take a place. Raises DatabaseError."""
        ...

    async def close(self) -> None:
        """Finish what is pending and let go of every connection and thread."""
        ...

    async def enqueue(self, jobs: Sequence[NewJob]) -> Enqueued:
        """Store one batch; returns when it is on disk. Raises OverloadedError, IdempotencyError, DatabaseError."""
        ...

    async def slots(self, names: Collection[str], *, since_ms: int, latest_ms: int) -> Mapping[str, int]:
        """The last slot fired of each schedule; one that is new, or beyond ``latest_ms``, is set to ``since_ms``."""
        ...

    async def fire(self, schedule: str, slot_ms: int, job: NewJob) -> bool:
        """Store the job of a slot and move the schedule on. False: it was fired before, or the job's key is taken."""
        ...

    async def enqueue_within(self, connection: aiosqlite.Connection, job: NewJob) -> JobRecord:
        """Store a job in the open transaction of the caller's own connection; the caller commits or rolls back.

        Returns the job, or the earlier one of its key. Raises TransactionError, IdempotencyError, DatabaseError.
        """
        ...

    async def claim(self, limit: int, *, lease_s: float, skip: Collection[str] = ()) -> Claimed:
        """Promote what is due, then take up to ``limit`` queued jobs, highest priority first, oldest first.

        Jobs of the tasks named in ``skip`` are left to others.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """End attempts and release the next jobs of their batches. False: that lease had lapsed, nothing changed."""
        ...

    async def renew(self, *, lease_s: float) -> Mapping[str, str | None]:
        """Prolong the leases of this place. Returns its running jobs: id → reason if a cancel is requested."""
        ...

    def beat(self, *, lease_s: float, at_ms: int | None = None) -> None:
        """Tell that this process lives, so that none of its leases lapses for ``lease_s`` seconds.

        ``at_ms`` is a monotonic time other than now, for who moves the clock by hand and lived all the while.

        Called from a thread of its own: it must not need the event loop, which a task may be blocking.
        """
        ...

    def write_note(self, text: str) -> None:
        """Leave word, up to 4 kB, for whoever looks from outside (``asyncbg doctor``). From any thread."""
        ...

    async def save_counters(self, text: str) -> None:
        """Keep this process's counters where the others find them, in place of what was kept before. Raises OSError."""
        ...

    async def load_counters(self) -> tuple[str | None, Sequence[str]]:
        """The counters kept for this place, at the start by its last holder, and for the others. Raises OSError."""
        ...

    async def processes(self) -> int:
        """How many processes run jobs here now. Raises OSError."""
        ...

    async def follow_clock(self) -> int:
        """Move delays and retries along where the wall clock has jumped; returns by how many milliseconds it did."""
        ...

    async def report(self, lease: Lease, progress: str) -> bool:
        """Keep the latest progress (JSON) on the job. False: the lease had lapsed."""
        ...

    def record(self, lease: Lease, event_type: str, data: str) -> Awaitable[bool]:
        """Store an event that the task itself publishes. False: the lease had lapsed.

        Calls take effect in their order, whenever they are awaited.
        """
        ...

    def guard(self, lease: Lease) -> Guard:
        """What a transaction in the same database asks first: it raises LeaseLostError where the lease has lapsed."""
        ...

    def guard_ended(self, job_id: str) -> Guard:
        """The same for whoever cleans up after a job: it raises JobStateError where the job is not final any more."""
        ...

    async def holds(self, lease: Lease) -> bool:
        """Whether the lease still holds: asked before an effect outside the database."""
        ...

    async def cancel(self, job_id: str, reason: str) -> JobState:
        """Cancel a job, or request it of the place that runs it. Raises JobNotFoundError, JobStateError."""
        ...

    async def retry(self, job_id: str) -> JobState:
        """Queue a final job again, its history kept. Raises JobNotFoundError, JobStateError."""
        ...

    async def quarantine(self) -> Sequence[str]:
        """Fail the open jobs whose rows cannot be read, which keep others from being claimed; returns their ids."""
        ...

    async def rescue(self) -> int:
        """Take up the jobs of dead places and lapsed leases; returns how many."""
        ...

    async def purge(self, *, before_ms: int, limit: int) -> int:
        """Delete up to ``limit`` final jobs finished before ``before_ms``, and their events; returns how many."""
        ...

    async def get(self, job_id: str) -> JobRecord | None:
        """One job, or None."""
        ...

    async def find_by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """The job that was submitted under this idempotency key, or None."""
        ...

    async def list(self, query: JobQuery) -> Sequence[JobRecord]:
        """Jobs, newest first."""
        ...

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """The latest attempts of a job, oldest first; none where there is no such job."""
        ...

    async def events(
        self, *, after_seq: int, wanted: EventFilter, limit: int, up_to_seq: int | None = None
    ) -> tuple[Sequence[Event], int]:
        """Stored events after ``after_seq`` that ``wanted`` matches, in order, and the seq the scan reached.

        The scan is bounded: fewer than ``limit`` events with a reached seq below the last one means: ask again.
        """
        ...

    async def position(self) -> LogPosition:
        """Which part of the log there is."""
        ...

    async def tail(self, *, after_report: int | None) -> Tail:
        """Where the log is now, and the progress that others have reported after ``after_report`` (None: none)."""
        ...

    async def counts(self) -> Mapping[JobState, int]:
        """How many jobs are in each state that is not final."""
        ...

    async def waiting(self) -> Sequence[TaskCount]:
        """How many jobs of each task have not begun, by state; tasks without any are left out."""
        ...

    async def waiting_of(self, owners: Collection[str], most: int) -> Mapping[str, int]:
        """How many jobs of each of these owners have not begun, counted up to ``most``."""
        ...

    async def owners(self) -> Sequence[str]:
        """The owners of jobs that are not final."""
        ...

    async def probe(self) -> None:
        """Prove that a write and a claim work; leaves nothing behind. Raises DatabaseError."""
        ...
