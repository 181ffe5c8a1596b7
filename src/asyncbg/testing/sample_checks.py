"""The checks of one look at a stream: headers, first bytes, framing, ids."""

import re

from asyncbg.testing.endpoint import EVENT_STREAM, Endpoint, fail, skip
from asyncbg.testing.sample import WHATWG, Check, Sample, require_events, require_nothing, require_stream

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


async def status(endpoint: Endpoint, sample: Sample) -> None:
    """The status."""
    if sample.status == 0:
        fail(sample.problem)
    if sample.status != 200:
        fail(f"the status is {sample.status}; an EventSource gives up for good on anything but 200")


async def content_type(endpoint: Endpoint, sample: Sample) -> None:
    """The media type."""
    found = sample.headers.get("content-type", "")
    essence, _, parameters = found.partition(";")
    if essence.strip().lower() != EVENT_STREAM:
        fail(f"Content-Type is {found!r}, not {EVENT_STREAM}: an EventSource gives up for good")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in {"utf-8", "utf8"}:
        fail(f"Content-Type names the charset {charset[1]}; an event stream is always UTF-8")


async def cache_control(endpoint: Endpoint, sample: Sample) -> None:
    """Nothing may be kept."""
    if not _directives(sample) & {"no-cache", "no-store"}:
        fail(f"Cache-Control is {sample.headers.get('cache-control')!r}; send no-cache or no-store")


async def no_transform(endpoint: Endpoint, sample: Sample) -> None:
    """Nothing may be recompressed on the way."""
    if "no-transform" not in _directives(sample):
        fail("Cache-Control lacks no-transform: a proxy that compresses may hold events back until its buffer is full")


async def no_buffering(endpoint: Endpoint, sample: Sample) -> None:
    """No proxy may wait."""
    if sample.headers.get("x-accel-buffering", "").lower() != "no":
        fail("X-Accel-Buffering: no is not sent: nginx holds events back until its buffer is full")


async def no_length(endpoint: Endpoint, sample: Sample) -> None:
    """The length is not known."""
    if "content-length" in sample.headers:
        fail("Content-Length is sent: the client takes the stream for over after so many bytes")


async def first_bytes(endpoint: Endpoint, sample: Sample) -> None:
    """Something comes before there is anything to tell."""
    if sample.status == 0:
        fail(sample.problem)
    require_stream(sample)
    if not sample.has_first_bytes:
        fail(f"no byte came within {endpoint.timeout_s:g} s of the response; send a comment or retry: first")


async def retry(endpoint: Endpoint, sample: Sample) -> None:
    """When to come back."""
    if bad := sample.ignored("retry"):
        fail(f"retry: {bad[0]!r} is not ASCII digits only, and is ignored")
    if sample.retry_ms is None:
        fail("no retry: field came; browsers then choose a time of their own, some seconds")


async def delivery(endpoint: Endpoint, sample: Sample) -> None:
    """Events come when they are made."""
    if endpoint.make_event is None:
        skip("no way to make an event was given: make_event=")
    if sample.problem:
        fail(sample.problem)


async def utf8(endpoint: Endpoint, sample: Sample) -> None:
    """The bytes are text."""
    try:
        sample.raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(f"byte {error.start} of the stream is not UTF-8: {error.reason}")
    if sample.raw.find(b"\xef\xbb\xbf", 1) > 0:
        fail("a byte order mark stands within the stream: the line it begins is ignored")


async def fields(endpoint: Endpoint, sample: Sample) -> None:
    """Every line means something."""
    lines = sample.unknown
    if lines:
        fail(
            f"the line {lines[0]!r} is neither a comment nor event, data, id or retry, and is ignored; "
            "every line of a payload needs its own data:"
        )


async def data(endpoint: Endpoint, sample: Sample) -> None:
    """Every event is one."""
    empty = [frame for frame in sample.frames if frame.event and not frame.is_event]
    if empty:
        fail(f"the event {empty[0].event!r} has no data, so it is never dispatched")


async def ids(endpoint: Endpoint, sample: Sample) -> None:
    """Events can be named."""
    if not sample.ids:
        fail("no event carries an id: a client that was cut off cannot say where to go on")


async def id_characters(endpoint: Endpoint, sample: Sample) -> None:
    """An id survives every header, log and URL."""
    if not sample.ids:
        skip("no event carries an id")
    if bad := [found for found in sample.ids if found and not _ID.fullmatch(found)]:
        fail(f"the id {bad[0]!r} is not made of 1 to 64 of A-Z a-z 0-9 . _ -")


async def id_nul(endpoint: Endpoint, sample: Sample) -> None:
    """An id is taken."""
    if sample.ignored("id"):
        fail("an id has a NUL in it, and is ignored: the client goes on with the one before")
    if not sample.ids:
        skip("no event carries an id")


async def id_unique(endpoint: Endpoint, sample: Sample) -> None:
    """An id names one event."""
    named = [frame.id for frame in sample.events if frame.id is not None]
    if not named:
        skip("no event carries an id")
    if twice := [found for found in named if named.count(found) > 1]:
        fail(f"two events of one stream carry the id {twice[0]!r}")


async def disconnect(endpoint: Endpoint, sample: Sample) -> None:
    """Who left costs nothing."""
    if sample.is_released is None:
        skip("only to be seen where the application runs in this process")
    if not sample.is_released:
        fail(
            f"the application went on for {endpoint.timeout_s:g} s after its client had left; listen to http.disconnect"
        )


def _directives(sample: Sample) -> set[str]:
    return {word.strip().lower() for word in sample.headers.get("cache-control", "").split(",")}


SAMPLE_CHECKS = (
    Check("status", "answers 200", f"{WHATWG} 9.2.3", status, require_nothing),
    Check("content-type", "is text/event-stream in UTF-8", f"{WHATWG} 9.2.3, 9.2.5", content_type),
    Check("cache-control", "forbids to keep it", "RFC 9111 5.2.2.4", cache_control),
    Check("no-transform", "forbids to recompress it", "RFC 9111 5.2.2.6", no_transform),
    Check("no-buffering", "tells proxies not to wait", "nginx, ngx_http_proxy_module: proxy_buffering", no_buffering),
    Check("no-length", "has no Content-Length", "RFC 9112 6", no_length),
    Check("first-bytes", "sends something at once", f"{WHATWG} 9.2.7", first_bytes, require_nothing),
    Check("retry", "says when to reconnect", f"{WHATWG} 9.2.6", retry),
    Check("delivery", "sends events when they are made", f"{WHATWG} 9.2.7", delivery),
    Check("utf-8", "is valid UTF-8", f"{WHATWG} 9.2.5", utf8, require_events),
    Check("fields", "has only lines that mean something", f"{WHATWG} 9.2.5, 9.2.6", fields, require_events),
    Check("data", "gives every event data", f"{WHATWG} 9.2.6", data, require_events),
    Check("ids", "gives events ids", f"{WHATWG} 9.2.6", ids, require_events),
    Check("id-characters", "uses ids of [A-Za-z0-9._-]{1,64}", f"{WHATWG} 9.2.4", id_characters, require_events),
    Check("id-nul", "has no NUL in an id", f"{WHATWG} 9.2.6", id_nul, require_events),
    Check("id-unique", "names every event once", f"{WHATWG} 9.2.4", id_unique, require_events),
    Check("disconnect", "ends when its client leaves", "ASGI HTTP specification, disconnect event", disconnect),
)
