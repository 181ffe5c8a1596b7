"""A recorded sample of a stream, and the checks of the conformance kit that examine it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from asyncbg.testing.endpoint import CheckFailedError, Endpoint, fail, skip
from asyncbg.testing.frames import Frame
from asyncbg.testing.stream import EventReader

MADE = 3
WHATWG: Final = "WHATWG HTML"


@dataclass(slots=True, kw_only=True)
class Sample:
    """The recorded response of an endpoint. ``problem`` is the reason why it is incomplete."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    has_first_bytes: bool = False
    frames: list[Frame] = field(default_factory=list)
    retry_ms: int | None = None
    raw: bytes = b""
    made: int = 0
    is_released: bool | None = None
    problem: str = ""

    @property
    def events(self) -> list[Frame]:
        """Return the blocks that an EventSource dispatches."""
        return [frame for frame in self.frames if frame.is_event]

    @property
    def ids(self) -> list[str]:
        """Return the ids of all blocks with one."""
        return [frame.id for frame in self.frames if frame.id is not None]

    def ignored(self, name: str) -> list[str]:
        """Return the ignored values of fields with that name."""
        pairs = [line.partition(":") for frame in self.frames for line in frame.unknown]
        return [value.removeprefix(" ") for field, _, value in pairs if field == name]

    @property
    def unknown(self) -> list[str]:
        """Return the lines with unknown fields."""
        lines = [line for frame in self.frames for line in frame.unknown]
        return [line for line in lines if line.partition(":")[0] not in {"id", "retry"}]


async def take_sample(endpoint: Endpoint) -> Sample:
    """Open the stream, wait for its first bytes, create events, read them and disconnect."""
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
        sample.raw, sample.is_released, sample.retry_ms = bytes(reader.raw), reader.is_released, reader.retry_ms
    return sample


async def _read(endpoint: Endpoint, reader: EventReader, sample: Sample) -> None:
    sample.frames += await reader.greeting(endpoint.timeout_s)
    sample.has_first_bytes = bool(reader.raw)
    if endpoint.make_event is None or reader.is_ended:
        return
    await endpoint.make(MADE)
    sample.made = MADE
    loop = asyncio.get_running_loop()
    until = loop.time() + endpoint.timeout_s
    greeted = len(sample.events)
    while len(sample.events) - greeted < MADE:
        frame = await _next(reader, until - loop.time())
        if frame is None:
            fail(f"{MADE} events were made, {len(sample.events) - greeted} arrived within {endpoint.timeout_s:g} s")
        sample.frames.append(frame)


async def _next(reader: EventReader, timeout_s: float) -> Frame | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await reader.frame()
    except TimeoutError:
        return None


def require_nothing(sample: Sample) -> None:
    """Accept every sample."""


def require_stream(sample: Sample) -> None:
    """Skip the check unless a stream was opened."""
    if sample.status != 200:
        skip("the endpoint opened no stream")


def require_events(sample: Sample) -> None:
    """Skip the check without an event in the sample."""
    require_stream(sample)
    if not sample.events:
        skip(sample.problem or "make_event= was not given")


def require_ids(sample: Sample) -> None:
    """Skip the check if no event could be created; fail it if the events have no id."""
    require_stream(sample)
    if sample.problem:
        skip(sample.problem)
    if sample.made and not sample.ids:
        fail("no event carries an id, so no client can resume after a disconnect")


class Check(NamedTuple):
    """One check: ``run`` returns if it passes, and calls ``fail`` or ``skip`` otherwise, as does ``need``."""

    name: str
    title: str
    reference: str
    run: Callable[[Endpoint, Sample], Awaitable[None]]
    need: Callable[[Sample], None] = require_stream

    async def make(self, endpoint: Endpoint, sample: Sample) -> None:
        """Check the precondition and run the check."""
        self.need(sample)
        await self.run(endpoint, sample)
