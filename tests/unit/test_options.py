"""The options of one job: what no job can have is refused where it is given, and named."""

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from asyncbg.engine import CallOptions
from asyncbg.errors import OptionsError

NOW_MS = 1_800_000_000_000
TEXTS = ["", "a\nb", "a\0b", "\x1b[2J", "\ud800", "a\u2028b", "x" * 256, 7, b"a"]


@pytest.mark.parametrize(
    "odd",
    [
        *({"delay": delay} for delay in (math.inf, -math.inf, math.nan, 1e15, -1e15, 10**400, "5", True)),
        *({"delay": delay} for delay in (timedelta.max, timedelta.min)),
        *({"at": at} for at in (datetime.max.replace(tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))),
        *({"at": at} for at in (datetime(2026, 1, 1), "2026-01-01T00:00:00Z", 1.5)),  # noqa: DTZ001 - no zone
        *({"at": at} for at in (datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),)),
        *({"priority": priority} for priority in (10**30, -(10**30), 1.5, "5", True)),
        *({name: text} for text in TEXTS for name in ("idempotency_key", "owner")),
        *({"tags": [tag]} for tag in TEXTS),
        *({"tags": tags} for tags in ("word", 7, ["a"] * 33, ["a" * 101], [None])),
    ],
    ids=lambda odd: repr(odd)[:60],
)
def test_what_no_job_can_have_is_refused(odd: dict[str, Any]) -> None:
    """The error names the option and what it should be, and never the value."""
    with pytest.raises(OptionsError, match=r"should be|needs") as caught:
        CallOptions(**odd)

    assert caught.value.option == f"{next(iter(odd))}="
    assert isinstance(caught.value, ValueError)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("given", "run_at_ms"),
    [
        ({"delay": 1.5}, NOW_MS + 1_500),
        ({"delay": timedelta(minutes=1)}, NOW_MS + 60_000),
        ({"delay": -5}, NOW_MS),
        ({"delay": 12 * 86_400 * 1_000}, NOW_MS + 12 * 86_400_000_000),
        ({"at": datetime(4000, 1, 1, tzinfo=UTC)}, 64_060_588_800_000),
        ({"at": datetime.min.replace(tzinfo=UTC)}, 1),
        ({"tags": ("a", "b")}, NOW_MS),
    ],
)
def test_what_a_job_can_have_is_taken(given: dict[str, Any], run_at_ms: int) -> None:
    """A time that has passed is now; far ahead is far ahead."""
    assert CallOptions(**given).run_at_ms(NOW_MS) == run_at_ms
