"""The event streams that are open in this process: how many there may be, and how they end."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from asyncbg.auth.caller import Caller
from asyncbg.core.job import ANONYMOUS
from asyncbg.engine import Engine
from asyncbg.errors import OverloadedError
from asyncbg.streams.delivery import Delivery
from asyncbg.streams.gathering import Gathering

_log = logging.getLogger(__name__)

SEND_TIMEOUT_S: Final = 28.0
"""Looked at each second, on a busy machine a little later: who takes nothing is closed within 30 s."""
BYE_TIMEOUT_S: Final = 0.8
REVOKED_S: Final = 0.3
RETRY_AFTER_S: Final = 5.0
_LONGEST_SWEEP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatistics:
    """Streams open now, and counts since the start."""

    open: int
    opened: int
    refused: int
    stalled: int


class OpenStreams:
    """Counts the streams that are open, keeps them within the caps, watches their deadlines and ends them."""

    def __init__(
        self, engine: Engine, *, rng: random.Random | None = None, send_timeout_s: float = SEND_TIMEOUT_S
    ) -> None:
        """Stream what ``engine`` has; ``rng`` spreads the reconnects after a shutdown."""
        self.engine = engine
        self.settings = engine.settings.stream
        self.send_timeout_s = send_timeout_s
        self._drained_life = -1
        self._rng = rng or random.Random()  # nosec B311  # noqa: S311 - jitter is no secret
        self._open: set[Delivery] = set()
        self._open_of: Counter[str] = Counter()
        self._empty = asyncio.Event()
        self._opened = self._refused = self._stalled = 0
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_s = min(_LONGEST_SWEEP_S, self.settings.heartbeat_s / 10, send_timeout_s / 10)
        self.gathering = Gathering(streams=lambda: len(self._open), turns=lambda: engine.bus.turns)

    @property
    def is_draining(self) -> bool:
        """Whether streams were told to end, in this life of the engine."""
        return self._drained_life == self.engine.bus.life

    def drain(self) -> None:
        """Say goodbye on every stream, and cut those that do not take it in time: all end within a second.

        Call it on the event loop, as soon as the process is told to stop.
        """
        if not self.is_draining:
            self._drained_life = self.engine.bus.life
            for stream in self._open:
                stream.wake()
            asyncio.get_running_loop().call_later(BYE_TIMEOUT_S, self._cut, list(self._open))

    @property
    def are_open(self) -> bool:
        """Whether there is any stream."""
        return bool(self._open)

    def end_unless(self, stands: Callable[[Caller], bool]) -> int:
        """End the streams of callers whose credentials do not stand any more, within a second; returns how many."""
        ending = [one for one in self._open if one.view.caller is not None and not stands(one.view.caller)]
        for stream in ending:
            stream.revoke()
        if ending:
            asyncio.get_running_loop().call_later(REVOKED_S, self._cut_revoked, ending)
        return len(ending)

    def abandon(self) -> None:
        """Forget all streams: the event loop that they are in was closed."""
        self._open.clear()
        self._open_of.clear()
        self._sweeping = None
        self._empty = asyncio.Event()

    def reopen(self) -> None:
        """Take streams again after :meth:`drain`: one application has ended, and the engine goes on."""
        self._drained_life = -1

    async def join(self) -> None:
        """Wait until no stream is open."""
        while self._open:
            self._empty.clear()
            await self._empty.wait()

    def statistics(self) -> StreamStatistics:
        """How many streams there are and were."""
        return StreamStatistics(open=len(self._open), opened=self._opened, refused=self._refused, stalled=self._stalled)

    def add(self, stream: Delivery) -> None:
        """Count a stream that begins. Raises OverloadedError where the last place was taken since it was asked for."""
        self.check_room(stream.view.owner)
        self._open.add(stream)
        self._open_of[stream.view.owner] += 1
        self._opened += 1
        if self._sweeping is None:
            self._sweep()

    def remove(self, stream: Delivery) -> None:
        """Count a stream that ended."""
        self._open.discard(stream)
        self._open_of[stream.view.owner] -= 1
        if not self._open_of[stream.view.owner]:
            del self._open_of[stream.view.owner]
        if not self._open:
            self._empty.set()
        if stream.connection.waiting:
            asyncio.get_running_loop().call_later(self.send_timeout_s, stream.connection.let_go)

    def note_stall(self) -> None:
        """Count a stream whose client took nothing."""
        self._stalled += 1
        _log.warning("an event stream was closed: its client took nothing for %g s", self.send_timeout_s)

    def age_s(self) -> float:
        """How old a new stream may become: up to a tenth less than the setting, so that not all end at once."""
        return self.settings.max_age_s * self._rng.uniform(0.9, 1)

    def bye_retry_ms(self) -> int:
        """When a client should come back after a goodbye: spread over one more retry interval."""
        return int(self.settings.retry_ms * self._rng.uniform(1, 2))

    def check_room(self, owner: str) -> None:
        """Raise OverloadedError where no more streams are taken.

        One owner leaves a tenth of the places to others; where nobody logs in, all share them.
        """
        limit = self.settings.max_subscribers
        owner_limit = limit if owner == ANONYMOUS else limit - limit // 10
        if len(self._open) >= limit or self._open_of[owner] >= owner_limit:
            self._refused += 1
            raise OverloadedError(
                f"too many event streams are open (at most {limit} in this process, {owner_limit} for one owner); "
                "close one, or come back later",
                retry_after_s=RETRY_AFTER_S,
            )

    def _sweep(self) -> None:
        """One timer for the deadlines of all streams: each looks at its own."""
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(self._sweep_s, self._sweep) if self._open else None
        for stream in list(self._open):
            try:
                stream.look_at_time(
                    loop.time(), send_timeout_s=self.send_timeout_s, heartbeat_s=self.settings.heartbeat_s
                )
            except BaseException as error:  # noqa: BLE001 - the deadlines of the other streams hold all the same
                self.engine.errors.add("streams", error, "an event stream missed its deadline", is_ours=True)

    def _cut(self, told: Sequence[Delivery]) -> None:
        """End those that are still there, and the connections of those whose goodbye waits for a client that is not."""
        for stream in self._open if self.is_draining else ():
            stream.cut()
        for stream in told:
            stream.connection.let_go()

    def _cut_revoked(self, told: Sequence[Delivery]) -> None:
        """The same for those whose credentials ended."""
        for stream in told:
            if stream in self._open:
                stream.cut()
            else:
                stream.connection.let_go()
