"""Time comes from a clock that can be moved by hand, in whole milliseconds."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncbg.core.clock import Clock, ManualClock, SystemClock, rfc3339

YEAR_2999_MS = 32_503_679_999_999


def test_the_system_clock_tells_the_time_of_day_in_milliseconds() -> None:
    """``now_ms`` lies between two readings of the operating system's own clock."""
    before = time.time_ns() // 1_000_000
    now_ms = SystemClock().now_ms()

    assert before <= now_ms <= time.time_ns() // 1_000_000


def test_the_system_clock_measures_durations_that_never_go_back() -> None:
    """``monotonic_ms`` gives whole milliseconds in order."""
    clock = SystemClock()
    readings = [clock.monotonic_ms() for _ in range(1000)]

    assert readings == sorted(readings)


def test_a_manual_clock_stands_still() -> None:
    """It moves only when it is told to."""
    clock: Clock = ManualClock(1_000)

    assert [clock.now_ms(), clock.now_ms(), clock.monotonic_ms()] == [1_000, 1_000, 1_000]


def test_a_manual_clock_takes_the_words_of_timedelta() -> None:
    """Days, minutes, seconds and milliseconds add up."""
    clock = ManualClock(0)

    clock.advance(days=1, minutes=2, seconds=3, milliseconds=4)

    assert clock.now_ms() == 86_400_000 + 120_000 + 3_000 + 4
    assert clock.monotonic_ms() == clock.now_ms()


@given(st.integers(0, 10_000_000))
@example(1_001)
def test_a_manual_clock_moves_by_exactly_what_it_is_told(ms: int) -> None:
    """A number of milliseconds written as seconds loses nothing to binary fractions."""
    clock = ManualClock(0)

    clock.advance(seconds=ms / 1000)

    assert clock.now_ms() == ms


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_342_500_250, "2026-11-22T10:15:00.250Z"),
        (YEAR_2999_MS, "2999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_written_as_rfc_3339_in_utc(ms: int, text: str) -> None:
    """Always three decimals, always Z."""
    assert rfc3339(ms) == text


@given(st.integers(0, YEAR_2999_MS))
def test_a_written_time_reads_back_to_the_millisecond(ms: int) -> None:
    """No time of this millennium is rounded away."""
    read = datetime.fromisoformat(rfc3339(ms))

    assert (read - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) == ms
