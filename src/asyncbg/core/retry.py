"""From attempt to delay: exponential backoff with full jitter (AWS, "Exponential Backoff And Jitter", 2015)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asyncbg.errors import FinalError

_LONGEST_DELAY_S = 366 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a failed job is retried, and after which delay.

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
    """Whether another attempt could succeed: not after a FinalError, nor one inside a group of errors."""
    return not any(isinstance(part, FinalError) for part in iter_errors(error))


def requested_delay_s(error: BaseException) -> float | None:
    """Return the longest delay that the error, or one in its group, requests (``retry_after_s``), if any."""
    delays = [delay for part in iter_errors(error) if (delay := _requested(part)) is not None]
    return max(delays, default=None)


def iter_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield the error itself, and the errors of a group at any depth, in their order: up to a thousand."""
    pending, seen = [error], 0
    while pending and seen < _MOST_SEEN:
        one = pending.pop()
        seen += 1
        yield one
        if isinstance(one, BaseExceptionGroup):
            pending += reversed(one.exceptions[:_MOST_SEEN])


_MOST_SEEN = 1_000


def _requested(error: BaseException) -> float | None:
    try:
        delay: Any = getattr(error, "retry_after_s", None)
        is_known = isinstance(delay, int | float) and delay >= 0  # which NaN is not
    except Exception:  # noqa: BLE001 - a property that raises
        return None
    return float(min(delay, _LONGEST_DELAY_S)) if is_known else None
