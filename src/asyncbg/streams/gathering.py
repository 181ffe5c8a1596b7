"""When streams pause after a send, so that under load many events go out in one."""

from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 100e-6
"""For each open stream."""
LONGEST_S: Final = 0.1
_BUSY_S: Final = 40e-6
"""A send each stream in this time keeps a processor at least a quarter busy."""
_LOOK_S: Final = 0.05
_LONGEST_LOOK_S: Final = 2.0


class Gathering:
    """One for all streams of a process, which share the event loop and so pause together. Times are loop seconds.

    A pause pays only where events come faster than they can be sent one by one, and nobody waits for each to arrive.
    So it is tried now and then while the bus is busy, goes on while every pause gathers more than one publication, and
    is tried more and more seldom where it gathers nothing. An event that comes alone is never held up.
    """

    def __init__(self, *, streams: Callable[[], int], turns: Callable[[], int]) -> None:
        """Learn from how many ``streams`` are open and how often (``turns``) the bus has published."""
        self._streams = streams
        self._turns = turns
        self._until = 0.0
        self._turns_before = 0
        self._is_open = False
        self._look_at = 0.0
        self._look_s = _LOOK_S
        self._mark = (0.0, 0)

    def pause_s(self, now: float) -> float:
        """How long a stream that has just sent something pauses before it sends more."""
        if now < self._until:
            return self._until - now
        if self._is_open:
            return self._judge(now)
        return 0.0 if now < self._look_at else self._look(now)

    def _judge(self, now: float) -> float:
        """The pause is over: was it worth it?"""
        self._is_open = False
        if self._turns() - self._turns_before > 1 and now < self._until + LONGEST_S:
            self._look_s = _LOOK_S
            return self._begin(now)
        self._look_s = min(2 * self._look_s, _LONGEST_LOOK_S)
        return self._rest(now)

    def _look(self, now: float) -> float:
        """Is the bus so busy that a pause would gather something?"""
        since, turns = self._mark
        if (self._turns() - turns) * self._streams() * _BUSY_S > now - since:
            return self._begin(now)
        return self._rest(now)

    def _begin(self, now: float) -> float:
        self._is_open = True
        self._turns_before = self._turns()
        length_s = self._length_s()
        self._until = now + length_s
        return length_s

    def _rest(self, now: float) -> float:
        self._look_at = now + self._look_s
        self._mark = (now, self._turns())
        return 0.0

    def _length_s(self) -> float:
        return min(max(1, self._streams()) * PAUSE_S, LONGEST_S)
