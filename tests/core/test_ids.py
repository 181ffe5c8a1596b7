"""Job ids are UUIDv7: unique, and sorted by the order they were made whatever the clock does."""

import itertools
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.core.clock import ManualClock
from asyncbg.core.ids import IdGenerator, is_job_id, random_token

NOW_MS = 1_800_000_000_000


def test_an_id_is_a_uuid_of_version_7() -> None:
    """Version, variant and the canonical lower-case form are those of RFC 9562."""
    text = IdGenerator().new()
    read = uuid.UUID(text)

    assert (read.version, read.variant, str(read)) == (7, uuid.RFC_4122, text)


def test_an_id_begins_with_the_time_it_was_made() -> None:
    """The first 48 bits are milliseconds since the epoch."""
    text = IdGenerator(ManualClock(NOW_MS)).new()

    assert uuid.UUID(text).int >> 80 == NOW_MS


def test_ids_of_one_millisecond_sort_in_the_order_they_were_made() -> None:
    """More ids than the twelve counting bits hold still sort: the next milliseconds are borrowed."""
    ids = IdGenerator(ManualClock(NOW_MS))
    made = [ids.new() for _ in range(10_000)]

    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_never_sort_before_earlier_ones_when_the_clock_goes_back() -> None:
    """A corrected clock does not disturb the order."""
    clock = ManualClock(NOW_MS)
    ids = IdGenerator(clock)
    first = ids.new()
    clock.advance(hours=-1)

    assert ids.new() > first


@given(st.lists(st.integers(-5_000, 5_000), max_size=60))
def test_ids_sort_by_the_order_they_were_made_whatever_the_clock_does(steps: list[int]) -> None:
    """Forward, back or standing still: each id sorts after the one before it."""
    clock = ManualClock(NOW_MS)
    ids = IdGenerator(clock)
    made = [ids.new()]
    for step in steps:
        clock.advance(milliseconds=step)
        made.append(ids.new())

    assert all(earlier < later for earlier, later in itertools.pairwise(made))
    assert all(is_job_id(text) for text in made)


def test_threads_never_get_the_same_id() -> None:
    """One generator serves many threads."""
    ids = IdGenerator(ManualClock(NOW_MS))
    with ThreadPoolExecutor(8) as threads:
        made = [text for part in threads.map(lambda _: [ids.new() for _ in range(500)], range(8)) for text in part]

    assert len(set(made)) == 4_000


def test_two_generators_differ_in_the_same_millisecond() -> None:
    """The random part keeps processes apart that count alike."""
    clock = ManualClock(NOW_MS)
    one, other = IdGenerator(clock), IdGenerator(clock)

    assert {one.new() for _ in range(100)}.isdisjoint({other.new() for _ in range(100)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "probe",
        str(uuid.UUID(int=0)),
        "018f0000-0000-4000-8000-000000000000",
        "018f0000-0000-7000-0000-000000000000",
        "018F0000-0000-7000-8000-00000000000A",
        "018f0000-0000-7000-8000-000000000000\n",
        "018f000000007000800000000000000a",
    ],
)
def test_other_text_is_no_job_id(text: str) -> None:
    """Other versions, variants, cases and forms are refused."""
    assert not is_job_id(text)


@given(st.text(max_size=50))
def test_arbitrary_text_is_judged_without_an_error(text: str) -> None:
    """What is taken for an id is a UUID of version 7."""
    assert not is_job_id(text) or uuid.UUID(text).version == 7


def test_a_fencing_token_fits_a_signed_bigint() -> None:
    """Tokens are not negative, have at most 62 bits, and differ."""
    tokens = [random_token() for _ in range(1_000)]

    assert all(0 <= token < 2**62 for token in tokens)
    assert len(set(tokens)) == 1_000
