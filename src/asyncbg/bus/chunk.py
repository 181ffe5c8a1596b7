"""Events on their way to subscribers: encoded once, joined once, and the same object for all of them."""

import itertools
from collections.abc import Iterator

from asyncbg.core.event import Event, encode


class Published:
    """An event on its way to subscribers. Its SSE frame is made once, when the first of them asks for it."""

    __slots__ = ("_wire", "event")

    def __init__(self, event: Event) -> None:
        """Carry ``event``, not encoded yet."""
        self.event = event
        self._wire: bytes | None = None

    def wire(self, epoch: str) -> bytes:
        """The event as one SSE frame."""
        if self._wire is None:
            self._wire = encode(self.event, epoch)
        return self._wire


class Chunk:
    """What goes to the subscribers of one filter at once: stored events of one commit in order, or one progress.

    It is made once for all of them, and so is the join of its frames.
    """

    __slots__ = ("_wire", "is_progress", "many", "published")

    def __init__(self, published: list[Published]) -> None:
        """Carry ``published``, at least one."""
        self.published = published
        self.many = len(published)
        self.is_progress = not published[0].event.seq
        self._wire: bytes | None = None

    def wire(self, epoch: str) -> bytes:
        """All of it as SSE frames."""
        if self._wire is None:
            self._wire = b"".join([one.wire(epoch) for one in self.published])
        return self._wire


def chunks(pending: list[Published]) -> Iterator[Chunk]:
    """Runs of stored events, and each progress by itself."""
    for is_stored, run in itertools.groupby(pending, lambda published: published.event.seq > 0):
        if is_stored:
            yield Chunk(list(run))
        else:
            yield from (Chunk([progress]) for progress in run)
