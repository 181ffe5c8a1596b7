"""How one job is enqueued: when it is due, how urgent it is, whose it is, under which idempotency key."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import aiosqlite

from asyncbg.job import ANONYMOUS


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How one job is enqueued; None keeps the task's own choice. ``delay`` is seconds or a timedelta."""

    delay: float | timedelta | None = None
    at: datetime | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    tags: Sequence[str] = ()
    owner: str = ANONYMOUS
    fingerprint: str | None = None
    connection: aiosqlite.Connection | None = None

    def run_at_ms(self, now_ms: int) -> int:
        """When the job is due. Raises ValueError for a time without a zone."""
        if self.at is not None:
            if self.at.tzinfo is None:
                raise ValueError("at= needs a time zone, such as datetime.now(UTC) + timedelta(hours=1)")
            return max(1, int(self.at.timestamp() * 1000))
        if self.delay is None:
            return now_ms
        delay_s = self.delay.total_seconds() if isinstance(self.delay, timedelta) else self.delay
        return now_ms + max(0, int(delay_s * 1000))


NO_OPTIONS = CallOptions()
