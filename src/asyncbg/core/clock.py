"""Clocks: time is passed in, and only this module reads the operating system's clock."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999


class Clock(Protocol):
    """Where the engine reads the time. Both readings are whole milliseconds."""

    def now_ms(self) -> int:
        """Wall-clock time, milliseconds since 1970-01-01T00:00:00Z."""
        ...

    def monotonic_ms(self) -> int:
        """A reading that never goes back, for measuring durations."""
        ...


class SystemClock:
    """The operating system's clock."""

    def now_ms(self) -> int:
        """Wall-clock time, milliseconds since 1970-01-01T00:00:00Z."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """A reading that never goes back, for measuring durations."""
        return time.monotonic_ns() // 1_000_000


class ManualClock:
    """A clock that moves only by hand, for tests: ``clock.advance(minutes=5)``."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        """Start at ``now_ms``, milliseconds since the epoch."""
        self._now_ms = self._monotonic_ms = now_ms

    def now_ms(self) -> int:
        """The time the clock was last moved to."""
        return self._now_ms

    def monotonic_ms(self) -> int:
        """How far the clock was moved forward; ``set_wall`` does not change it."""
        return self._monotonic_ms

    def advance(self, **delta: float) -> None:
        """Move forward; the keywords are those of ``datetime.timedelta``."""
        moved_ms = timedelta(**delta) // timedelta(milliseconds=1)
        self._now_ms += moved_ms
        self._monotonic_ms += moved_ms

    def set_wall(self, **delta: float) -> None:
        """Move the wall clock forward or back, as if an operator had set it; the monotonic clock stays."""
        self._now_ms += timedelta(**delta) // timedelta(milliseconds=1)


def rfc3339(ms: int) -> str:
    """Write milliseconds since the epoch as RFC 3339 UTC: ``2026-11-22T10:15:00.250Z``.

    A time outside the years 1 to 9999, which has no calendar date, is written as the nearest one.
    """
    try:
        return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except OverflowError:
        return rfc3339(min(max(ms, _FIRST_MS), _LAST_MS))
