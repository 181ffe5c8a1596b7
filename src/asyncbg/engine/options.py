"""Options: how the jobs of a task are run, and how one job is enqueued."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import aiosqlite

from asyncbg.core.job import ANONYMOUS
from asyncbg.core.retry import RetryPolicy
from asyncbg.core.stored_text import require_line
from asyncbg.engine.unique_key import KeyOption
from asyncbg.errors import (
    OptionsError,
)

_MAX_RETRIES = 10_000
_LONGEST_TIMEOUT_S = 366 * 86_400
_HIGHEST_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How a task's jobs are run. ``timeout`` is seconds for one attempt; higher ``priority`` runs first."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    queue: str = "default"
    priority: int = 0
    key: KeyOption | None = None
    at_most_once: bool = False

    def __post_init__(self) -> None:
        """Raise OptionsError for invalid options."""
        check_priority(self.priority)
        require_line("queue=", self.queue)
        if not _is_whole(self.retry.retries) or not 0 <= self.retry.retries <= _MAX_RETRIES:
            raise OptionsError("retries=", f"should be a whole number from 0 to {_MAX_RETRIES:,}")
        if self.timeout is not None and not (_is_number(self.timeout) and 0 < self.timeout <= _LONGEST_TIMEOUT_S):
            raise OptionsError("timeout=", "should be more than 0 seconds, at most a year; None for no limit")


def check_priority(priority: object) -> None:
    """Raise OptionsError for an invalid priority."""
    if not _is_whole(priority) or not -_HIGHEST_PRIORITY <= priority <= _HIGHEST_PRIORITY:  # type: ignore[operator]
        raise OptionsError("priority=", f"should be a whole number, at most {_HIGHEST_PRIORITY:,} either way")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_LONGEST_DELAY = timedelta(days=365_250)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)
_MAX_TAGS = 32
_LONGEST_TAG = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How one job is enqueued; None keeps the task's option. ``delay`` is seconds or a timedelta.

    Raises OptionsError for invalid options. A time in the past means now. The latest time is the year 9998, the longest
    delay a thousand years.
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
        """Validate the options that are set."""
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
        """Return when the job is due, in milliseconds since the epoch."""
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
    if len(found) > _MAX_TAGS:
        raise OptionsError("tags=", f"should be at most {_MAX_TAGS} words")
    for tag in found:
        require_line("tags=", tag, most=_LONGEST_TAG)
    return found


NO_OPTIONS = CallOptions()
