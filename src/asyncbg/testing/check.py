"""What a check of an endpoint is, and what it may need before it can be made."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from asyncbg.testing.endpoint import Endpoint, fail, skip
from asyncbg.testing.sample import Sample

WHATWG: Final = "WHATWG HTML"


def require_nothing(sample: Sample) -> None:
    """The check can always be made."""


def require_stream(sample: Sample) -> None:
    """Skip where no stream was opened at all."""
    if sample.status != 200:
        skip("the endpoint opened no stream")


def require_events(sample: Sample) -> None:
    """Skip where the sample has no event in it."""
    require_stream(sample)
    if not sample.events:
        skip(sample.problem or "no way to make an event was given: make_event=")


def require_ids(sample: Sample) -> None:
    """Skip where no event could be made. Fails where those that were made carry no id."""
    require_stream(sample)
    if sample.problem:
        skip(sample.problem)
    if sample.made and not sample.ids:
        fail("no event carries an id, so no client can go on where it was cut off")


class Check(NamedTuple):
    """One check: ``run`` returns where it is passed, and ends by ``fail`` or ``skip`` otherwise, as ``need`` does."""

    name: str
    title: str
    reference: str
    run: Callable[[Endpoint, Sample], Awaitable[None]]
    need: Callable[[Sample], None] = require_stream

    async def make(self, endpoint: Endpoint, sample: Sample) -> None:
        """Look whether it can be made, and make it."""
        self.need(sample)
        await self.run(endpoint, sample)
