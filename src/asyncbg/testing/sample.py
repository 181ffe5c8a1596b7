"""One look at a stream with a few events on it, which most checks judge."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncbg.testing.endpoint import CheckFailedError, Endpoint, fail
from asyncbg.testing.frames import Frame
from asyncbg.testing.stream import EventReader

MADE = 3


@dataclass(slots=True, kw_only=True)
class Sample:
    """What an endpoint answered. ``problem`` says why there is no more of it."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    has_first_bytes: bool = False
    frames: list[Frame] = field(default_factory=list)
    raw: bytes = b""
    made: int = 0
    is_released: bool | None = None
    problem: str = ""

    @property
    def events(self) -> list[Frame]:
        """The blocks that an EventSource would dispatch."""
        return [frame for frame in self.frames if frame.is_event]

    @property
    def ids(self) -> list[str]:
        """The ids of all blocks that have one."""
        return [frame.id for frame in self.frames if frame.id is not None]


async def take_sample(endpoint: Endpoint) -> Sample:
    """Open the stream, wait for its first bytes, make events, read them, leave."""
    sample = Sample()
    reader: EventReader | None = None
    try:
        async with endpoint.open() as reader:
            sample.status, sample.headers = reader.status, reader.headers
            if reader.status == 200:
                await _read(endpoint, reader, sample)
    except CheckFailedError as error:
        sample.problem = str(error)
    except TimeoutError:
        sample.problem = f"no response within {endpoint.timeout_s:g} s"
    if reader is not None:
        sample.raw, sample.is_released = bytes(reader.raw), reader.is_released
    return sample


async def _read(endpoint: Endpoint, reader: EventReader, sample: Sample) -> None:
    first = await _next(reader, endpoint.timeout_s)
    sample.has_first_bytes = bool(reader.raw)
    if first is not None:
        sample.frames.append(first)
    if endpoint.make_event is None or reader.is_ended:
        return
    await endpoint.make(MADE)
    sample.made = MADE
    loop = asyncio.get_running_loop()
    until = loop.time() + endpoint.timeout_s
    while len(sample.events) < MADE:
        frame = await _next(reader, until - loop.time())
        if frame is None:
            fail(f"{MADE} events were made, {len(sample.events)} arrived within {endpoint.timeout_s:g} s")
        sample.frames.append(frame)


async def _next(reader: EventReader, timeout_s: float) -> Frame | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await reader.frame()
    except TimeoutError:
        return None
