"""Checks of a recorded sample: headers, first bytes, framing, ids."""

import re

from asyncbg.testing.endpoint import EVENT_STREAM, Endpoint, fail, skip
from asyncbg.testing.sample import WHATWG, Check, Sample, require_events, require_nothing, require_stream

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


async def status(endpoint: Endpoint, sample: Sample) -> None:
    """The status is 200."""
    if sample.status == 0:
        fail(sample.problem)
    if sample.status != 200:
        fail(f"the status is {sample.status}; an EventSource never reconnects after any status but 200")


async def content_type(endpoint: Endpoint, sample: Sample) -> None:
    """The media type is ``text/event-stream``."""
    found = sample.headers.get("content-type", "")
    essence, _, parameters = found.partition(";")
    if essence.strip().lower() != EVENT_STREAM:
        fail(f"Content-Type is {found!r}, not {EVENT_STREAM}: an EventSource never reconnects")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in {"utf-8", "utf8"}:
        fail(f"Content-Type names the charset {charset[1]}; an event stream is always UTF-8")


async def cache_control(endpoint: Endpoint, sample: Sample) -> None:
    """The response must not be cached."""
    if not _directives(sample) & {"no-cache", "no-store"}:
        fail(f"Cache-Control is {sample.headers.get('cache-control')!r}; send no-cache or no-store")


async def no_transform(endpoint: Endpoint, sample: Sample) -> None:
    """Proxies must not transform the response."""
    if "no-transform" not in _directives(sample):
        fail("Cache-Control lacks no-transform: a proxy that compresses may hold events back until its buffer is full")


async def no_buffering(endpoint: Endpoint, sample: Sample) -> None:
    """nginx must not buffer the response."""
    if sample.headers.get("x-accel-buffering", "").lower() != "no":
        fail("X-Accel-Buffering: no is not sent: nginx holds events back until its buffer is full")


async def no_length(endpoint: Endpoint, sample: Sample) -> None:
    """The response has no Content-Length."""
    if "content-length" in sample.headers:
        fail("Content-Length is sent: the client ends the stream after that many bytes")


async def first_bytes(endpoint: Endpoint, sample: Sample) -> None:
    """The first bytes arrive before the first event."""
    if sample.status == 0:
        fail(sample.problem)
    require_stream(sample)
    if not sample.has_first_bytes:
        fail(f"no byte came within {endpoint.timeout_s:g} s of the response; send a comment or retry: first")


async def retry(endpoint: Endpoint, sample: Sample) -> None:
    """The stream sets a valid reconnection time."""
    if bad := sample.ignored("retry"):
        fail(f"retry: {bad[0]!r} is not ASCII digits only, and is ignored")
    if sample.retry_ms is None:
        fail("no retry: field was sent; browsers then use their own reconnection time of some seconds")


async def delivery(endpoint: Endpoint, sample: Sample) -> None:
    """Events arrive when they are published."""
    if endpoint.make_event is None:
        skip("make_event= was not given")
    if sample.problem:
        fail(sample.problem)


async def utf8(endpoint: Endpoint, sample: Sample) -> None:
    """The stream is valid UTF-8."""
    try:
        sample.raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(f"byte {error.start} of the stream is not UTF-8: {error.reason}")
    if sample.raw.find(b"\xef\xbb\xbf", 1) > 0:
        fail("a byte order mark is inside the stream: the line it begins is ignored")


async def fields(endpoint: Endpoint, sample: Sample) -> None:
    """Every line is a known field or a comment."""
    lines = sample.unknown
    if lines:
        fail(
            f"the line {lines[0]!r} is neither a comment nor event, data, id or retry, and is ignored; "
            "every line of a payload needs its own data:"
        )


async def data(endpoint: Endpoint, sample: Sample) -> None:
    """Every event has data."""
    empty = [frame for frame in sample.frames if frame.event and not frame.is_event]
    if empty:
        fail(f"the event {empty[0].event!r} has no data, so it is never dispatched")


async def ids(endpoint: Endpoint, sample: Sample) -> None:
    """Events have ids."""
    if not sample.ids:
        fail("no event carries an id: a client cannot resume after a disconnect")


async def id_characters(endpoint: Endpoint, sample: Sample) -> None:
    """Ids are safe in headers, logs and URLs."""
    if not sample.ids:
        skip("no event carries an id")
    if bad := [found for found in sample.ids if found and not _ID.fullmatch(found)]:
        fail(f"the id {bad[0]!r} is not 1 to 64 characters of A-Z a-z 0-9 . _ -")


async def id_nul(endpoint: Endpoint, sample: Sample) -> None:
    """No id contains NUL."""
    if sample.ignored("id"):
        fail("an id has a NUL in it, and is ignored: the client keeps the previous id")
    if not sample.ids:
        skip("no event carries an id")


async def id_unique(endpoint: Endpoint, sample: Sample) -> None:
    """Ids are unique."""
    named = [frame.id for frame in sample.events if frame.id is not None]
    if not named:
        skip("no event carries an id")
    if twice := [found for found in named if named.count(found) > 1]:
        fail(f"two events of one stream carry the id {twice[0]!r}")


async def disconnect(endpoint: Endpoint, sample: Sample) -> None:
    """The application stops when its client disconnects."""
    if sample.is_released is None:
        skip("only observable for an application in this process")
    if not sample.is_released:
        fail(f"the application ran {endpoint.timeout_s:g} s after its client had disconnected; handle http.disconnect")


def _directives(sample: Sample) -> set[str]:
    return {word.strip().lower() for word in sample.headers.get("cache-control", "").split(",")}


SAMPLE_CHECKS = (
    Check("status", "answers 200", f"{WHATWG} 9.2.3", status, require_nothing),
    Check("content-type", "is text/event-stream in UTF-8", f"{WHATWG} 9.2.3, 9.2.5", content_type),
    Check("cache-control", "forbids caching", "RFC 9111 5.2.2.4", cache_control),
    Check("no-transform", "forbids transformation", "RFC 9111 5.2.2.6", no_transform),
    Check("no-buffering", "disables proxy buffering", "nginx, ngx_http_proxy_module: proxy_buffering", no_buffering),
    Check("no-length", "has no Content-Length", "RFC 9112 6", no_length),
    Check("first-bytes", "sends first bytes at once", f"{WHATWG} 9.2.7", first_bytes, require_nothing),
    Check("retry", "sets the reconnection time", f"{WHATWG} 9.2.6", retry),
    Check("delivery", "sends events when they are published", f"{WHATWG} 9.2.7", delivery),
    Check("utf-8", "is valid UTF-8", f"{WHATWG} 9.2.5", utf8, require_events),
    Check("fields", "has only known fields", f"{WHATWG} 9.2.5, 9.2.6", fields, require_events),
    Check("data", "has data in every event", f"{WHATWG} 9.2.6", data, require_events),
    Check("ids", "has event ids", f"{WHATWG} 9.2.6", ids, require_events),
    Check("id-characters", "uses ids of [A-Za-z0-9._-]{1,64}", f"{WHATWG} 9.2.4", id_characters, require_events),
    Check("id-nul", "has no NUL in an id", f"{WHATWG} 9.2.6", id_nul, require_events),
    Check("id-unique", "has unique ids", f"{WHATWG} 9.2.4", id_unique, require_events),
    Check("disconnect", "stops when its client disconnects", "ASGI HTTP specification, disconnect event", disconnect),
)
