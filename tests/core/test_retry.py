"""From attempt to delay: exponential, jittered, capped; some errors are never tried again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.core.retry import RetryPolicy, is_retryable, requested_delay_s
from asyncbg.errors import AsyncBGError, FinalError


class _Highest(random.Random):
    """Chance at its upper end."""

    def uniform(self, a: float, b: float) -> float:
        """The upper bound."""
        return b


class _WithDelayError(Exception):
    """An error that asks for a delay."""

    def __init__(self, retry_after_s: object) -> None:
        super().__init__("come back later")
        self.retry_after_s = retry_after_s


class _PointlessError(FinalError):
    """A service's own final error."""


@given(
    attempt=st.integers(1, 10_000),
    base_s=st.floats(0.001, 60),
    cap_s=st.floats(0.001, 86_400),
    seed=st.integers(),
)
def test_a_delay_lies_between_nothing_and_the_cap(attempt: int, base_s: float, cap_s: float, seed: int) -> None:
    """Full jitter: from 0 to min(cap, base * 2 ** (attempt - 1)), however many attempts there were."""
    delay_s = RetryPolicy(base_s=base_s, cap_s=cap_s).delay_s(attempt, random.Random(seed))

    assert 0 <= delay_s <= cap_s
    assert delay_s <= base_s * 2 ** min(attempt - 1, 62)


def test_the_longest_delay_doubles_up_to_the_cap() -> None:
    """1, 2, 4, 8 seconds, then the cap."""
    policy = RetryPolicy(base_s=1, cap_s=10)

    assert [policy.delay_s(attempt, _Highest()) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_the_same_chance_gives_the_same_delays() -> None:
    """The generator that is passed in decides, and nothing else."""
    policy = RetryPolicy()

    first, second = ([policy.delay_s(attempt, rng) for attempt in range(1, 6)] for rng in map(random.Random, (7, 7)))

    assert first == second


def test_delays_are_spread() -> None:
    """Jobs that failed together do not come back together."""
    rng = random.Random(1)
    delays = [RetryPolicy(base_s=8).delay_s(1, rng) for _ in range(1000)]

    assert min(delays) < 1
    assert max(delays) > 7


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), AsyncBGError("x"), TimeoutError()])
def test_an_error_is_retryable(error: Exception) -> None:
    """Everything that might end differently is tried again."""
    assert is_retryable(error)


@pytest.mark.parametrize("error", [FinalError("x"), _PointlessError("x")])
def test_a_final_error_is_not_retryable(error: Exception) -> None:
    """FinalError and what is derived from it end the job at once."""
    assert not is_retryable(error)


@pytest.mark.parametrize(("asked", "delay_s"), [(0, 0.0), (2, 2.0), (1.5, 1.5)])
def test_an_error_may_ask_for_a_delay(asked: object, delay_s: float) -> None:
    """``retry_after_s`` of the error is the delay it wants."""
    assert requested_delay_s(_WithDelayError(asked)) == delay_s


@pytest.mark.parametrize("asked", [None, "soon", -1, float("nan")])
def test_a_senseless_request_for_a_delay_is_ignored(asked: object) -> None:
    """Text, negative and undefined delays count as none."""
    assert requested_delay_s(_WithDelayError(asked)) is None


def test_an_error_without_a_wish_asks_for_no_delay() -> None:
    """The policy decides then."""
    assert requested_delay_s(ValueError("x")) is None
