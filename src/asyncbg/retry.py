"""From attempt to delay: exponential backoff with full jitter (AWS, "Exponential Backoff And Jitter", 2015)."""

import random
from dataclasses import dataclass

from asyncbg.errors import FinalError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a failed job is tried again, and how long after.

    ``retries`` counts the attempts after the first. The delay before attempt ``k + 1`` is drawn uniformly from
    0 to ``min(cap_s, base_s * 2 ** (k - 1))`` seconds.
    """

    retries: int = 0
    base_s: float = 1.0
    cap_s: float = 300.0

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait after the failed attempt number ``attempt`` (1 is the first)."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(attempt - 1, 62))
        return rng.uniform(0, ceiling)


def is_retryable(error: BaseException) -> bool:
    """Whether another attempt could end differently: everything but a FinalError."""
    return not isinstance(error, FinalError)


def requested_delay_s(error: BaseException) -> float | None:
    """The delay the error itself asks for (``retry_after_s``, from a peer's Retry-After), if any."""
    delay = getattr(error, "retry_after_s", None)
    return float(delay) if isinstance(delay, int | float) and delay >= 0 else None
