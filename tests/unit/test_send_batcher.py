"""When streams pause after a send: only where it gathers something."""

from dataclasses import dataclass

import pytest

from asyncbg.streams.send_batcher import PAUSE_S, SendBatcher


@dataclass
class Load:
    """A bus that publishes so often, and so many streams."""

    streams: int = 100
    publications: int = 0
    now: float = 1_000.0


@pytest.fixture
def load() -> Load:
    """A hundred streams on a quiet bus."""
    return Load()


@pytest.fixture
def batcher(load: Load) -> SendBatcher:
    """What is tested."""
    return SendBatcher(streams=lambda: load.streams, publications=lambda: load.publications)


def pauses(batcher: SendBatcher, load: Load, *, every_s: float, for_s: float, waits: bool = False) -> list[float]:
    """The pauses while the bus publishes ``every_s``; a publisher that ``waits`` stands still while streams pause."""
    found, end = [], load.now + for_s
    while load.now < end:
        load.publications += 1
        pause_s = batcher.pause_s(load.now)
        if pause_s:
            found.append(pause_s)
            load.publications += 0 if waits else int(pause_s / every_s)
        load.now += pause_s + every_s
    return found


def test_an_event_that_comes_alone_is_not_held_up(batcher: SendBatcher, load: Load) -> None:
    """Fifty events a second to a hundred streams: no stream ever pauses."""
    assert pauses(batcher, load, every_s=0.02, for_s=60) == []


def test_a_busy_bus_makes_streams_pause(batcher: SendBatcher, load: Load) -> None:
    """Thousands a second gather in pauses of at most what all sends cost, most of the time."""
    found = pauses(batcher, load, every_s=0.0005, for_s=5)

    assert max(found) == pytest.approx(100 * PAUSE_S)
    assert sum(found) > 4


def test_a_publisher_that_waits_is_not_slowed_down(batcher: SendBatcher, load: Load) -> None:
    """Where a pause gathers nothing it is tried again ever more seldom."""
    found = pauses(batcher, load, every_s=0.0005, for_s=60, waits=True)

    assert sum(found) < 1


def test_all_streams_pause_to_the_same_end(batcher: SendBatcher, load: Load) -> None:
    """A stream that sends during a pause waits only for the rest of it."""
    pauses(batcher, load, every_s=0.0005, for_s=1)
    first = batcher.pause_s(load.now)
    while not first:
        load.publications, load.now = load.publications + 100, load.now + 0.01
        first = batcher.pause_s(load.now)

    assert batcher.pause_s(load.now + first / 4) == pytest.approx(first * 3 / 4)
