"""Jobs: records, states, the table of transitions, and the outcomes of attempts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

from asyncbg.core.stored_arguments import shown_arguments
from asyncbg.core.stored_text import load_json, make_storable
from asyncbg.privacy.marks import ArgumentRedactor, Mark

LONGEST_MESSAGE = 2_000
"""Characters kept of the text of an error, a progress report or a cancel reason."""
_LONGEST_UNIT = 100

ANONYMOUS = "anonymous"
"""The owner of a job without authentication."""


class JobState(StrEnum):
    """The state of a job. The last three are final."""

    WAITING = "waiting"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job is finished: only a retry by hand changes it."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.QUEUED, JobState.SCHEDULED, JobState.CANCELLED, JobState.FAILED}),
    JobState.SCHEDULED: frozenset({JobState.QUEUED, JobState.CANCELLED, JobState.FAILED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.SCHEDULED, JobState.QUEUED}
    ),
    JobState.SUCCEEDED: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""From each state, the states a job may move to. The database's trigger ``job_moves`` holds the same table."""


class NewJob(NamedTuple):
    """A job about to be stored, in the column order of the insert, flags as 0 or 1. A tuple, made once per enqueue."""

    id: str
    task: str
    queue: str
    owner: str
    batch: str
    tags: str
    state: str
    priority: int
    durable: int
    at_most_once: int
    stop_on_failure: int
    retries: int
    args: str
    personal: str
    created_at_ms: int
    run_at_ms: int
    place: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    unique_key: str | None = None
    absolute: int = 0

    def __repr__(self) -> str:
        """The id and the task; never arguments."""
        return f"<NewJob {self.id} {self.task}>"


class Lease(NamedTuple):
    """A claimed job: what one attempt needs, and the token that every later write of it names."""

    n: int
    id: str
    task: str
    queue: str
    owner: str
    batch: str
    tags: str
    priority: int
    durable: int
    at_most_once: int
    stop_on_failure: int
    retries: int
    attempt: int
    max_attempts: int
    args: str
    created_at_ms: int
    token: int

    def __repr__(self) -> str:
        """The id, the task and the attempt; never arguments."""
        return f"<Lease {self.id} {self.task} attempt {self.attempt}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressValue:
    """How far a job is: ``current`` of ``total`` (both in ``unit``), and a sentence for people."""

    current: float = 0
    total: float | None = None
    message: str = ""
    unit: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form of the contract, with 0 (or no total) for NaN and infinity, which JSON lacks."""
        return {
            "current": _finite(self.current, 0),
            "total": _finite(self.total, None),
            "message": make_storable(str(self.message), most=LONGEST_MESSAGE),
            "unit": make_storable(str(self.unit), most=_LONGEST_UNIT),
        }

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse stored progress; an invalid text is no progress."""
        found = load_json(text)
        known = {name: found[name] for name in cls.__slots__ if name in found} if isinstance(found, dict) else {}
        return cls(**known)


def _finite(value: object, otherwise: float | None) -> float | None:
    """Return ``value`` as a finite number, or ``otherwise``."""
    try:
        number = value if type(value) is int else float(value)  # type: ignore[arg-type]  # what is no number is caught
        return number if math.isfinite(number) else otherwise
    except (TypeError, ValueError, OverflowError):
        return otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """Why a job failed: the error's class and its message (redacted before it is stored)."""

    type: str
    message: str
    traceback: str | None = field(default=None, compare=False, repr=False)
    """The traceback as text; stored with the attempt, see :class:`Attempt`."""
    cause: BaseException | None = field(default=None, compare=False, repr=False)
    """The exception itself, where it was raised in this process."""

    def as_dict(self) -> dict[str, str]:
        """Return the JSON form of the contract."""
        return {"type": self.type, "message": self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as the store holds it. Times are milliseconds since the epoch."""

    n: int
    id: str
    task: str
    queue: str
    state: JobState
    owner: str
    priority: int
    batch: str
    tags: tuple[str, ...]
    durable: bool
    attempt: int
    max_attempts: int
    crashes: int
    created_at_ms: int
    run_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    args: str = field(repr=False)
    personal: Mapping[str, Mark] = field(default_factory=dict)
    progress: ProgressValue | None = None
    result: str | None = field(default=None, repr=False)
    error: JobFailure | None = None
    cancel_reason: str | None = None
    omitted: Mapping[str, int] = field(default_factory=dict)
    """Values left out of a list, with their sizes in bytes: ``args`` is ``{}`` then, and ``result`` None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a job, from its claim to its end. ``outcome`` and what follows are None while it runs."""

    number: int
    worker: str | None
    """The slot of the process that ran it, where that is known."""
    started_at_ms: int
    ended_at_ms: int | None = None
    outcome: str | None = None
    """``succeeded``, ``failed``, ``cancelled``, ``released`` (at a shutdown) or ``lost`` (process ended)."""
    error: JobFailure | None = None
    traceback: str | None = field(default=None, repr=False)


def redact_for(record: JobRecord, text: str) -> str:
    """Return a text about a job without its personal arguments and without what looks personal."""
    cleaned = ArgumentRedactor(shown_arguments(record.args), record.personal).clean(
        make_storable(text, most=LONGEST_MESSAGE)
    )
    return make_storable(cleaned, most=LONGEST_MESSAGE)


# Outcomes of one attempt: the executor returns them, the store writes them.


@dataclass(frozen=True, slots=True)
class Done:
    """The coroutine returned; ``result`` is its JSON text."""

    result: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed and another is due at ``run_at_ms``."""

    error: JobFailure
    run_at_ms: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed for good."""

    error: JobFailure


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job was cancelled while it ran, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt was released at a shutdown: the job is queued again and the attempt does not count."""

    reason: str


Outcome = Done | Retry | Failed | Cancelled | Released
