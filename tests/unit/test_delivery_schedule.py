"""When a webhook that did not arrive is tried again."""

import random

import pytest

from asyncbg.service.integrations.delivery_schedule import DeliverySchedule

SCHEDULE = DeliverySchedule((1.0, 5.0, 300.0))


@pytest.mark.parametrize(("attempt", "delay_s"), [(1, 1.0), (2, 5.0), (3, 300.0), (4, 300.0)])
def test_each_attempt_has_its_delay(attempt: int, delay_s: float) -> None:
    """The schedule's own, drawn out by up to a tenth."""
    drawn = [SCHEDULE.delay_s(attempt, random.Random(seed)) for seed in range(50)]

    assert all(delay_s <= one <= delay_s * 1.1 for one in drawn)
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("asked_s", [0.0, 7.0, 4_000.0])
def test_what_the_receiver_asks_for_wins(asked_s: float) -> None:
    """Sooner or later than the schedule's."""
    assert SCHEDULE.delay_s(1, random.Random(0), asked_s=asked_s) == asked_s


def test_an_empty_schedule_is_one_attempt() -> None:
    """Nothing follows the first."""
    assert DeliverySchedule(()).retries == 0
    assert DeliverySchedule(()).delay_s(1, random.Random(0)) == 0
