"""The retry schedule of webhooks and mails, with jitter."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeliverySchedule:
    """Delays between delivery attempts: ``delays_s[k]`` seconds after attempt ``k + 1``, then a final attempt.

    ``jitter`` is the largest fraction by which a delay is lengthened, or shortened if negative, so that the retries
    for one receiver are spread out.
    """

    delays_s: Sequence[float]
    jitter: float = 0.1

    @property
    def retries(self) -> int:
        """Return the number of attempts after the first."""
        return len(self.delays_s)

    def delay_s(self, attempt: int, rng: random.Random, *, asked_s: float | None = None) -> float:
        """Return the seconds to wait after the failed attempt number ``attempt`` (1 is the first).

        ``asked_s``, the receiver's ``Retry-After``, takes precedence and gets no jitter.
        """
        if asked_s is not None:
            return asked_s
        if not self.delays_s:
            return 0.0
        return self.delays_s[min(attempt, self.retries) - 1] * (1 + rng.uniform(0, self.jitter))
