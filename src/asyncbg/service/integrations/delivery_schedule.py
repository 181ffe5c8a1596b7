"""When a webhook or a mail that did not arrive is sent again: a schedule with a little jitter."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeliverySchedule:
    """``delays_s[k]`` seconds lie between attempt ``k + 1`` and the next; there is one attempt more than delays.

    ``jitter`` is the fraction by which a delay is lengthened at most, shortened where it is negative, so that the
    messages a receiver missed do not all come back in the same moment.
    """

    delays_s: Sequence[float]
    jitter: float = 0.1

    @property
    def retries(self) -> int:
        """How many attempts follow the first."""
        return len(self.delays_s)

    def delay_s(self, attempt: int, rng: random.Random, *, asked_s: float | None = None) -> float:
        """Seconds to wait after the failed attempt number ``attempt`` (1 is the first).

        What the receiver asked for (``Retry-After``) wins, without jitter.
        """
        if asked_s is not None:
            return asked_s
        if not self.delays_s:
            return 0.0
        return self.delays_s[min(attempt, self.retries) - 1] * (1 + rng.uniform(0, self.jitter))
