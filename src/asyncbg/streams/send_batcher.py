"""Pauses between the sends of a stream, so that under load one send carries many events."""

from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 100e-6
"""The pause for each open stream."""
MAX_PAUSE_S: Final = 0.1
_BUSY_S: Final = 40e-6
"""One send per stream in this time keeps a processor at least a quarter busy."""
_PROBE_INTERVAL_S: Final = 0.05
_MAX_PROBE_INTERVAL_S: Final = 2.0


class SendBatcher:
    """Decides when streams pause; one for the process, whose streams share the event loop. Times are loop seconds.

    A pause pays only where events arrive faster than they can be sent one by one, and where the publisher does not wait
    for each event to arrive. So the batcher tries a pause now and then while the bus is busy, keeps pausing while every
    pause collects more than one publication, and tries less and less often where a pause collects nothing. An event
    that arrives alone is never delayed.
    """

    def __init__(self, *, streams: Callable[[], int], publications: Callable[[], int]) -> None:
        """Read the number of open ``streams``, and of ``publications`` of the bus since its start."""
        self._streams = streams
        self._publications = publications
        self._pause_ends_at = 0.0
        self._publications_before = 0
        self._is_pausing = False
        self._probe_at = 0.0
        self._probe_interval_s = _PROBE_INTERVAL_S
        self._mark = (0.0, 0)

    def pause_s(self, now: float) -> float:
        """Return how long a stream that has just sent something pauses before its next send, in seconds."""
        if now < self._pause_ends_at:
            return self._pause_ends_at - now
        if self._is_pausing:
            return self._continue_or_stop(now)
        return 0.0 if now < self._probe_at else self._probe(now)

    def _continue_or_stop(self, now: float) -> float:
        """Pause again if the last pause collected more than one publication."""
        self._is_pausing = False
        if self._publications() - self._publications_before > 1 and now < self._pause_ends_at + MAX_PAUSE_S:
            self._probe_interval_s = _PROBE_INTERVAL_S
            return self._start_pause(now)
        self._probe_interval_s = min(2 * self._probe_interval_s, _MAX_PROBE_INTERVAL_S)
        return self._schedule_probe(now)

    def _probe(self, now: float) -> float:
        """Pause if the bus was busy enough since the last probe for a pause to collect something."""
        since, publications = self._mark
        if (self._publications() - publications) * self._streams() * _BUSY_S > now - since:
            return self._start_pause(now)
        return self._schedule_probe(now)

    def _start_pause(self, now: float) -> float:
        self._is_pausing = True
        self._publications_before = self._publications()
        length_s = min(max(1, self._streams()) * PAUSE_S, MAX_PAUSE_S)
        self._pause_ends_at = now + length_s
        return length_s

    def _schedule_probe(self, now: float) -> float:
        self._probe_at = now + self._probe_interval_s
        self._mark = (now, self._publications())
        return 0.0
