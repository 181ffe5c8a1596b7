"""The responses of the service as frozen values: a job, a page of jobs, an accepted job, an attempt, an event."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asyncbg.client.error import StreamError
from asyncbg.client.sse_parser import ServerEvent
from asyncbg.core.event import FINAL_EVENTS
from asyncbg.core.job import JobFailure, JobState, ProgressValue

RESET = "stream.reset"
OF_THE_STREAM = frozenset({"stream.bye", "stream.position"})
"""Events about the connection, which the client itself acts on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedJob:
    """A job that was accepted: it is on disk. ``state`` is the one it began in."""

    id: str
    task: str
    state: JobState

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "AcceptedJob":
        """Read the body of a 202. Raises KeyError, TypeError, ValueError where it is none."""
        job = body["jobs"][0]
        return cls(id=str(job["id"]), task=str(job["task"]), state=JobState(job["state"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteJob:
    """A job as it was when the service was asked. Times are in UTC; personal arguments are pseudonyms."""

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
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: ProgressValue | None
    result: Any
    error: JobFailure | None
    args: Mapping[str, Any]
    links: Mapping[str, str]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "RemoteJob":
        """Read the JSON form of a job. Raises KeyError, TypeError, ValueError where it is none."""
        progress, error = body["progress"], body["error"]
        return cls(
            id=body["id"],
            task=body["task"],
            queue=body["queue"],
            state=JobState(body["state"]),
            owner=body["owner"],
            priority=body["priority"],
            batch=body["batch"],
            tags=tuple(body["tags"]),
            durable=body["durable"],
            attempt=body["attempt"],
            max_attempts=body["max_attempts"],
            created_at=datetime.fromisoformat(body["created_at"]),
            run_at=datetime.fromisoformat(body["run_at"]),
            started_at=_time(body["started_at"]),
            finished_at=_time(body["finished_at"]),
            progress=_progress(progress) if progress else None,
            result=body["result"],
            error=JobFailure(type=error["type"], message=error["message"]) if error else None,
            args=body.get("args", {}),
            links=body.get("links", {}),
        )

    @property
    def is_final(self) -> bool:
        """Whether the job is finished: only a retry by hand changes it."""
        return self.state.is_final


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAttempt:
    """One attempt of a job. ``ended_at`` and ``outcome`` are None while it runs, ``traceback`` where none is kept."""

    number: int
    worker: str | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: JobFailure | None
    traceback: str | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "RemoteAttempt":
        """Read the JSON form of an attempt. Raises KeyError, TypeError, ValueError where it is none."""
        error = body["error"]
        return cls(
            number=body["number"],
            worker=body["worker"],
            started_at=datetime.fromisoformat(body["started_at"]),
            ended_at=_time(body["ended_at"]),
            outcome=body["outcome"],
            error=JobFailure(type=error["type"], message=error["message"]) if error else None,
            traceback=body["traceback"],
        )


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first; ``next`` is the cursor of the page that follows, None on the last one."""

    items: tuple[RemoteJob, ...]
    next: str | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "JobPage":
        """Read the JSON form of a page. Raises KeyError, TypeError, ValueError where it is none."""
        return cls(tuple(RemoteJob.from_json(item) for item in body["items"]), body["next"])


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteEvent:
    """One event of a stream.

    ``id`` is the cursor to resume after it; None for events that are not stored, such as progress. ``job_id`` is None
    where the event is about the stream itself. A ``stream.reset`` says that events may be missing before it: its
    ``data`` holds the ``reason``, how the ``jobs`` in view stand now, and whether these are all (``complete``).
    """

    type: str
    id: str | None
    time: datetime | None
    job_id: str | None
    task: str
    batch: str
    owner: str
    attempt: int
    data: Mapping[str, Any]

    @classmethod
    def from_frame(cls, frame: ServerEvent) -> "RemoteEvent":
        """Read one frame. Raises StreamError where it holds no event."""
        try:
            body = json.loads(frame.data)
            is_stored = body.get("id", frame.id) is not None or frame.event == RESET
            return cls(
                type=frame.event,
                id=(frame.id or None) if is_stored else None,
                time=_time(body.get("time")),
                job_id=body.get("subject"),
                task=body.get("task") or "",
                batch=body.get("batch") or "",
                owner=body.get("owner") or "",
                attempt=body.get("attempt") or 0,
                data=body.get("data") or {},
            )
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise StreamError(
                f"the stream sent a frame ({frame.event!r}) whose data is no event; is this asyncbg's own stream?"
            ) from error

    @property
    def is_final(self) -> bool:
        """Whether the job was final with this event."""
        return self.type in FINAL_EVENTS

    @property
    def is_reset(self) -> bool:
        """Whether this is a ``stream.reset``: events may be missing before it."""
        return self.type == RESET


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _progress(body: Mapping[str, Any]) -> ProgressValue:
    return ProgressValue(current=body["current"], total=body["total"], message=body["message"], unit=body["unit"])
