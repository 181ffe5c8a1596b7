"""The frames that a stream makes for itself: a job's progress as it stands, and notices about the stream."""

import json
from collections.abc import Mapping
from typing import Any

from asyncbg.core.clock import rfc3339
from asyncbg.core.event import Event, EventType, dump, encode
from asyncbg.core.job import JobRecord


def progress_frame(record: JobRecord, epoch: str, now_ms: int) -> bytes:
    """A job's latest progress; nothing where it never reported."""
    if record.progress is None:
        return b""
    event = Event(
        seq=0,
        type=EventType.PROGRESS,
        at_ms=record.finished_at_ms or now_ms,
        job_id=record.id,
        task=record.task,
        batch=record.batch,
        owner=record.owner,
        attempt=record.attempt,
        data=dump(record.progress.as_dict()),
    )
    return encode(event, epoch)


def notice_frame(kind: str, data: Mapping[str, Any], *, head: str, job_id: str | None, now_ms: int) -> bytes:
    """About the stream itself, in the form of the others; ``reason`` also where a glance finds it."""
    body = {
        "id": None,
        "type": kind,
        "time": rfc3339(now_ms),
        "subject": job_id,
        "reason": data["reason"],
        "data": data,
    }
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"{head}event: {kind}\ndata: {text}\n\n".encode()
