"""Checks with requests of their own: resume, unknown cursors, end of stream, HEAD, gzip, heartbeats."""

import asyncio
from collections.abc import Sequence

from asyncbg.testing.endpoint import Endpoint, fail, skip
from asyncbg.testing.frames import Frame
from asyncbg.testing.sample import WHATWG, Check, Sample, require_ids, require_nothing
from asyncbg.testing.stream import EventReader

_MADE = 4
_UNKNOWN = ("no-such-event", "9" * 40, "%00", "x" * 1_000)


async def fan_out(endpoint: Endpoint, sample: Sample) -> None:
    """Two clients receive the same events."""
    async with endpoint.open() as one, endpoint.open() as other:
        await _wait_for_greeting(endpoint, one, other)
        await endpoint.make(2)
        named = bool(sample.ids)
        first, second = await asyncio.gather(
            _events(endpoint, one, 2, named=named), _events(endpoint, other, 2, named=named)
        )
        _compare(first, second, "the second of two concurrent clients")


async def resume(endpoint: Endpoint, sample: Sample) -> None:
    """A client resumes with the event after its Last-Event-ID."""
    async with endpoint.open() as reference:
        await _wait_for_greeting(endpoint, reference)
        await endpoint.make(_MADE)
        seen = await endpoint.collect(reference, _MADE)
    for at in (0, len(seen) // 2, len(seen) - 2):
        await _expect_resume(endpoint, seen[at], seen[at + 1 :])


async def resume_after_absence(endpoint: Endpoint, sample: Sample) -> None:
    """Events published without a connected client are not lost."""
    async with endpoint.open() as before:
        await _wait_for_greeting(endpoint, before)
        await endpoint.make()
        [last] = await endpoint.collect(before, 1)
    await endpoint.make(_MADE)
    async with endpoint.open(last_event_id=last.id) as reader:
        _require_open(reader, last)
        first = await endpoint.collect(reader, _MADE, what="events made without a connected client")
    if any(frame.id == last.id for frame in first):
        fail(f"after Last-Event-ID {last.id!r} the stream repeats that event")
    await _expect_resume(endpoint, last, first)


async def resume_splice(endpoint: Endpoint, sample: Sample) -> None:
    """Between replayed and live events nothing is lost or repeated."""
    async with endpoint.open() as reference:
        await _wait_for_greeting(endpoint, reference)
        await endpoint.make(_MADE)
        seen = await endpoint.collect(reference, _MADE)
        async with endpoint.open(last_event_id=seen[0].id) as reader:
            _require_open(reader, seen[0])
            _, replayed = await asyncio.gather(
                endpoint.make(_MADE), endpoint.collect(reader, 2 * _MADE - 1, what="events replayed and made meanwhile")
            )
            seen += await endpoint.collect(reference, _MADE)
        _compare(seen[1 : 1 + len(replayed)], replayed, f"after Last-Event-ID {seen[0].id!r} the stream")


async def unknown_cursor(endpoint: Endpoint, sample: Sample) -> None:
    """An unknown cursor does not end a client."""
    for cursor in _UNKNOWN:
        async with endpoint.open(last_event_id=cursor) as reader:
            if reader.status not in {200, 204}:
                fail(
                    f"Last-Event-ID of {cursor[:20]!r} is answered {reader.status}: an EventSource never reconnects; "
                    "send an event that reports the gap"
                )


async def heartbeat(endpoint: Endpoint, sample: Sample) -> None:
    """An idle stream is distinguishable from a broken connection."""
    if endpoint.heartbeat_s is None:
        skip("heartbeat_s= was not given")
    async with endpoint.open() as reader:
        await _wait_for_greeting(endpoint, reader)
        limit_s = 2 * endpoint.heartbeat_s + 1
        try:
            async with asyncio.timeout(limit_s):
                if await reader.comment():
                    return
        except TimeoutError:
            fail(f"an idle stream got no comment within {limit_s:g} s")
        fail("an idle stream was ended")


async def whole_frames(endpoint: Endpoint, sample: Sample) -> None:
    """The last event of an ended stream is complete."""
    reader = await _read_to_end(endpoint)
    if reader.has_rest:
        fail("the stream ends without a blank line: its last event is never dispatched")


async def end_204(endpoint: Endpoint, sample: Sample) -> None:
    """A client that has received the end gets 204, which stops reconnects."""
    reader = await _read_to_end(endpoint)
    if not reader.last_event_id:
        fail("the stream that has ended has no id, so no client can report that it has received the end")
    async with endpoint.open(path=endpoint.ended, last_event_id=reader.last_event_id) as again:
        if again.status != 204:
            fail(f"a client that has received the end is answered {again.status}, not 204: it reconnects forever")


async def head(endpoint: Endpoint, sample: Sample) -> None:
    """HEAD has the status and headers of GET."""
    async with endpoint.open(method="HEAD") as reader:
        if reader.status != sample.status:
            fail(f"HEAD is answered {reader.status}, GET {sample.status}")
        found, wanted = reader.headers.get("content-type"), sample.headers.get("content-type")
        if found != wanted:
            fail(f"HEAD has the Content-Type {found!r}, GET {wanted!r}")
        body = await endpoint.with_timeout(reader.chunk(), lambda: "the response to HEAD did not end")
        if body:
            fail("the response to HEAD has a body")


async def gzip(endpoint: Endpoint, sample: Sample) -> None:
    """Compression is flushed after every event."""
    if coding := sample.headers.get("content-encoding"):
        fail(f"the stream is sent as {coding} to a client that accepts only identity")
    async with endpoint.open(encoding="gzip") as reader:
        coding = reader.headers.get("content-encoding", "identity")
        if coding == "identity":
            skip("the endpoint does not compress")
        if coding != "gzip":
            fail(f"the stream is sent as {coding} to a client that accepts only gzip")
        if "accept-encoding" not in reader.headers.get("vary", "").lower():
            fail("Vary does not name Accept-Encoding: a cache may send gzip to a client that does not accept it")
        if not await reader.greeting(endpoint.timeout_s) and not reader.raw:
            fail("compressed, no byte could be read")
        for _ in range(2):
            await endpoint.make()
            await endpoint.collect(reader, 1, what="compressed events (flush after each)")


async def _wait_for_greeting(endpoint: Endpoint, *readers: EventReader) -> None:
    """Wait for the first bytes, after which the stream is subscribed; continue if none arrive."""
    for reader in readers:
        await reader.greeting(endpoint.timeout_s)


async def _events(endpoint: Endpoint, reader: EventReader, count: int, *, named: bool) -> list[Frame]:
    """Return the next events; with ``named`` only those with an id, since others may go to some clients only."""
    found: list[Frame] = []

    async def read() -> None:
        while len(found) < count and (frame := await reader.frame()) is not None:
            if frame.is_event and (frame.id is not None or not named):
                found.append(frame)

    await endpoint.with_timeout(read(), lambda: f"{len(found)} of {count} events arrived")
    return found


async def _expect_resume(endpoint: Endpoint, last: Frame, expected: Sequence[Frame]) -> None:
    async with endpoint.open(last_event_id=last.id) as reader:
        _require_open(reader, last)
        what = f"events after Last-Event-ID {last.id!r}"
        found = await endpoint.collect(reader, len(expected), what=what)
    _compare(expected, found, f"after Last-Event-ID {last.id!r} the stream")


async def _read_to_end(endpoint: Endpoint) -> EventReader:
    if endpoint.ended is None:
        skip("ended= was not given")
    async with endpoint.open(path=endpoint.ended) as reader:
        if reader.status != 200:
            fail(f"{endpoint.ended} is answered {reader.status}")

        async def read() -> None:
            while await reader.frame() is not None:
                pass

        await endpoint.with_timeout(read(), lambda: f"{endpoint.ended} did not end")
    return reader


def _require_open(reader: EventReader, last: Frame) -> None:
    if reader.status != 200:
        fail(f"Last-Event-ID {last.id!r} of its own is answered {reader.status}")


def _compare(expected: Sequence[Frame], found: Sequence[Frame], who: str) -> None:
    """Fail the check at the first difference."""
    wanted, got = [frame.id for frame in expected], [frame.id for frame in found]
    if wanted != got:
        fail(f"{who} {_difference(wanted, got)}: expected the ids {wanted}, got {got}")
    for one, other in zip(expected, found, strict=True):
        if (one.event, one.data) != (other.event, other.data):
            fail(f"{who} sends event {one.id!r} differently: {other.event!r} {other.data[:80]!r}")


def _difference(wanted: Sequence[str | None], got: Sequence[str | None]) -> str:
    if repeated := [one for one in got if got.count(one) > wanted.count(one) and one in wanted]:
        return f"sends {repeated[0]!r} more than once"
    if foreign := [one for one in got if one not in wanted]:
        missing = [one for one in wanted if one not in got]
        return f"sends {foreign[0]!r} instead of {missing[0]!r}" if missing else f"also sends {foreign[0]!r}"
    return "sends events in another order"


REQUEST_CHECKS = (
    Check("fan-out", "sends two clients the same events", f"{WHATWG} 9.2.1", fan_out),
    Check("resume", "resumes exactly after Last-Event-ID", f"{WHATWG} 9.2.4", resume, require_ids),
    Check("resume-absence", "replays missed events", f"{WHATWG} 9.2.4", resume_after_absence, require_ids),
    Check(
        "resume-splice", "loses nothing between replay and live events", f"{WHATWG} 9.2.4", resume_splice, require_ids
    ),
    Check("unknown-cursor", "accepts an unknown cursor", f"{WHATWG} 9.2.3", unknown_cursor),
    Check("heartbeat", "sends a comment when idle", f"{WHATWG} 9.2.7", heartbeat),
    Check("whole-frames", "ends after a complete event", f"{WHATWG} 9.2.6", whole_frames, require_nothing),
    Check("end-204", "answers 204 after the end", f"{WHATWG} 9.2.3", end_204, require_nothing),
    Check("head", "answers HEAD as GET", "RFC 9110 9.3.2", head),
    Check("gzip", "flushes every compressed event", "RFC 9110 12.5.3, 12.5.5; RFC 1952", gzip),
)
