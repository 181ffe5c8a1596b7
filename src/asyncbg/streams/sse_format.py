"""The wire format of event streams: response headers, and the frames that are not encoded events of the log."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from asyncbg.core.clock import rfc3339
from asyncbg.core.event import Event, EventType, dump, encode
from asyncbg.core.job import JobRecord

MEDIA_TYPE: Final = "text/event-stream"


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header (RFC 9110, section 12.5.3) names gzip with a weight above zero."""
    for coding in header.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() in {"gzip", "x-gzip"}:
            return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight)
    return False


def stream_headers(*, gzip: bool = False, has_body: bool = True) -> dict[str, str]:
    """Return the response headers of an event stream."""
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", "Vary": "Accept-Encoding"}
    if has_body:
        headers["Content-Type"] = f"{MEDIA_TYPE}; charset=utf-8"
    if gzip:
        headers["Content-Encoding"] = "gzip"
    return headers


RAW_HEADERS = {
    gzip: [(name.lower().encode(), value.encode()) for name, value in stream_headers(gzip=gzip).items()]
    for gzip in (False, True)
}
"""The encoded response headers by compression: encoded once, and shared by all streams."""


def progress_frame(record: JobRecord, epoch: str, now_ms: int) -> bytes:
    """Return a frame with the latest progress of a job, or nothing where the job never reported any."""
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
    """Return a frame about the stream itself, shaped like an event; ``reason`` is repeated on the top level."""
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
