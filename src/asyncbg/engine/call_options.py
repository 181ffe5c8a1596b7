"""How one job is enqueued: when it is due, how urgent it is, whose it is, under which idempotency key."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import aiosqlite

from asyncbg.core.job import ANONYMOUS
from asyncbg.core.plain_text import require_line
from asyncbg.engine.task import check_priority
from asyncbg.errors import OptionsError

_LONGEST_DELAY = timedelta(days=365_250)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)
_MOST_TAGS = 32
_LONGEST_TAG = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How one job is enqueued; None keeps the task's own choice. ``delay`` is seconds or a timedelta.

    Raises OptionsError for what no job can have. A time that has passed is now; the latest is the year 9998, and the
    longest delay a thousand years.
    """

    delay: float | timedelta | None = None
    at: datetime | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    tags: Sequence[str] = ()
    owner: str = ANONYMOUS
    fingerprint: str | None = None
    connection: aiosqlite.Connection | None = None

    def __post_init__(self) -> None:
        """Check what was given; what was left out costs nothing."""
        if self.at is not None:
            _check_time(self.at)
        if self.delay is not None:
            _check_delay(self.delay)
        if self.priority is not None:
            check_priority(self.priority)
        if self.idempotency_key is not None:
            require_line("idempotency_key=", self.idempotency_key)
        if self.tags:
            object.__setattr__(self, "tags", _checked_tags(self.tags))
        if self.owner != ANONYMOUS:
            require_line("owner=", self.owner)

    def run_at_ms(self, now_ms: int) -> int:
        """When the job is due."""
        if self.at is not None:
            return max(1, int(self.at.timestamp() * 1000))
        if self.delay is None:
            return now_ms
        delay_s = self.delay.total_seconds() if isinstance(self.delay, timedelta) else self.delay
        return now_ms + max(0, int(delay_s * 1000))


def _check_time(at: object) -> None:
    if not isinstance(at, datetime):
        raise OptionsError("at=", f"should be a datetime, not {type(at).__name__}")
    if at.tzinfo is None:
        raise OptionsError("at=", "needs a time zone, such as datetime.now(UTC) + timedelta(hours=1)")
    if at >= _LAST:
        raise OptionsError("at=", "should be before the year 9999")


def _check_delay(delay: object) -> None:
    if isinstance(delay, bool) or not isinstance(delay, int | float | timedelta):
        raise OptionsError("delay=", f"should be seconds or a timedelta, not {type(delay).__name__}")
    longest = _LONGEST_DELAY if isinstance(delay, timedelta) else _LONGEST_DELAY.total_seconds()
    if not -longest <= delay <= longest:  # type: ignore[operator]  # of one kind; NaN is not between either
        raise OptionsError("delay=", "should be a number of seconds, at most a thousand years")


def _checked_tags(tags: object) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise OptionsError("tags=", "should be a list of words, such as ['welcome']")
    found = tuple(tags)
    if len(found) > _MOST_TAGS:
        raise OptionsError("tags=", f"should be at most {_MOST_TAGS} words")
    for tag in found:
        require_line("tags=", tag, most=_LONGEST_TAG)
    return found


NO_OPTIONS = CallOptions()
