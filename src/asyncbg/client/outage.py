"""How long to wait before the next try while the service is away, and when to give up."""

import math
import random
from typing import Final

from asyncbg.core.clock import Clock
from asyncbg.core.retry import RetryPolicy, requested_delay_s
from asyncbg.errors import AsyncBGError

BASE_S: Final = 0.25
CAP_S: Final = 30.0


class Outage:
    """Counts the failures since the service was last heard: the pause grows with them, with full jitter."""

    def __init__(self, *, clock: Clock, rng: random.Random, give_up_after_s: float | None) -> None:
        """Nothing has failed yet. ``give_up_after_s`` bounds an outage; None never gives up."""
        self._clock = clock
        self._rng = rng
        self._give_up_after_s = give_up_after_s
        self._began_ms: int | None = None
        self.failures = 0

    def end(self) -> None:
        """The service was heard."""
        self._began_ms, self.failures = None, 0

    def next_delay_s(self, error: AsyncBGError, *, at_least_s: float = 0) -> float:
        """How long to wait after ``error``: what the service asked for, and a growing random time on top.

        Raises ``error`` where the outage would take longer than allowed.
        """
        self.failures += 1
        least_s = max(at_least_s, requested_delay_s(error) or 0)
        policy = RetryPolicy(base_s=max(at_least_s, BASE_S), cap_s=max(at_least_s, CAP_S))
        delay_s = least_s + policy.delay_s(self.failures, self._rng)
        now_ms = self._clock.monotonic_ms()
        if self._began_ms is None:
            self._began_ms = now_ms
        if (
            self._give_up_after_s is not None
            and now_ms / 1000 + delay_s > self._began_ms / 1000 + self._give_up_after_s
        ):
            raise error
        return delay_s


class Deadline:
    """A time that comes ``timeout_s`` after now, or never."""

    def __init__(self, clock: Clock, timeout_s: float | None) -> None:
        """Begin to count."""
        self._clock = clock
        self._at_ms = math.inf if timeout_s is None else clock.monotonic_ms() + timeout_s * 1000

    def left_s(self) -> float:
        """Seconds until then; 0 when it has come, infinite where it never does."""
        return max(self._at_ms - self._clock.monotonic_ms(), 0) / 1000
