"""Events: facts about jobs, their filter and their wire form (CloudEvents 1.0 names in one SSE frame)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from json.encoder import encode_basestring
from typing import Any, NamedTuple

from asyncbg.core.clock import rfc3339
from asyncbg.core.stored_text import dump_json, load_json


class EventType(StrEnum):
    """The engine's own events of a job. A task may publish others under its own ``noun.verb`` names.

    ``engine_events.py`` has a class for each: when it happens, and what its data is.
    """

    WAITING = "job.waiting"
    SCHEDULED = "job.scheduled"
    QUEUED = "job.queued"
    STARTED = "job.started"
    PROGRESS = "job.progress"
    RETRYING = "job.retrying"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    CANCEL_IGNORED = "job.cancel_ignored"


FINAL_EVENTS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})


class Event(NamedTuple):
    """One fact about one job. ``seq`` is global and in commit order; 0 for progress, which is not stored.

    ``data`` is JSON text or None for ``{}``. A tuple, since the engine makes three per job.
    """

    seq: int
    type: str
    at_ms: int
    job_id: str
    task: str
    batch: str
    owner: str
    attempt: int
    data: str | None = None
    error: BaseException | None = None
    """Of ``job.failed`` and ``job.retrying``: what the task raised, if it ran in this process. Never stored or sent."""

    @property
    def is_final(self) -> bool:
        """Whether the job is final with this event."""
        return self.type in FINAL_EVENTS

    def payload(self) -> dict[str, Any]:
        """The event's own data."""
        found = load_json(self.data) if self.data else {}
        return found if isinstance(found, dict) else {}

    def envelope(self, epoch: str) -> dict[str, Any]:
        """The CloudEvents-named JSON object that ``data:`` carries. Progress has no id (None)."""
        return {
            "id": event_id(epoch, self.seq) if self.seq else None,
            "type": self.type,
            "time": rfc3339(self.at_ms),
            "subject": self.job_id,
            "task": self.task,
            "batch": self.batch,
            "owner": self.owner,
            "attempt": self.attempt,
            "data": self.payload(),
        }


def event_id(epoch: str, seq: int) -> str:
    """The wire id ``<epoch>-<seq>`` of a stored event."""
    return f"{epoch}-{seq}"


def dump(data: Mapping[str, Any]) -> str:
    """An event's own data as it is stored and sent: one line of JSON, in ASCII, without blanks; null for NaN."""
    return dump_json(data)


def encode(event: Event, epoch: str) -> bytes:
    """One event as one SSE frame (WHATWG HTML, section 9.2): id if stored, event, one line of JSON data.

    The line is :meth:`Event.envelope` as JSON, written down directly: the event's data are JSON already.
    """
    stored_id = event_id(epoch, event.seq) if event.seq else None
    text = (
        f'{{"id":{_quoted(stored_id)},"type":{_quoted(event.type)},"time":"{rfc3339(event.at_ms)}",'
        f'"subject":{_quoted(event.job_id)},"task":{_quoted(event.task)},"batch":{_quoted(event.batch)},'
        f'"owner":{_quoted(event.owner)},"attempt":{event.attempt},"data":{_one_line(event.data)}}}'
    )
    head = "" if stored_id is None else f"id: {stored_id}\n"
    return f"{head}event: {event.type}\ndata: {text}\n\n".encode("utf-8", "replace")


def _one_line(data: str | None) -> str:
    """The event's own data; a half of a surrogate pair, which not every reader takes, is found on the slower way."""
    if data is None:
        return "{}"
    return json.dumps(json.loads(data), ensure_ascii=False) if "\\ud" in data or "\n" in data else data


def _quoted(text: str | None) -> str:
    return "null" if text is None else encode_basestring(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events a consumer wants; None or empty takes all. ``types`` match exactly, or by prefix: ``job.*``."""

    jobs: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    batches: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    owner: str | None = None

    def matches(self, event: Event) -> bool:
        """Whether ``event`` is wanted."""
        return (
            (not self.jobs or event.job_id in self.jobs)
            and (not self.tasks or event.task in self.tasks)
            and (not self.batches or event.batch in self.batches)
            and (self.owner is None or event.owner == self.owner)
            and (not self.types or self._wants_type(event.type))
        )

    def _wants_type(self, event_type: str) -> bool:
        return event_type in self.types or any(
            wanted.endswith("*") and event_type.startswith(wanted[:-1]) for wanted in self.types
        )
