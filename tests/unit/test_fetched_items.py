"""What becomes of the items of a fetched document."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.service.integrations.fetched_items import REJECTIONS_KEPT, SAMPLE_ITEMS, items_in, summarize

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "name", "value", "x"]), inner),
)


@pytest.mark.parametrize(
    ("document", "items"),
    [([], 0), ([1, 2], 2), ({}, 0), ({"a": 1, "b": 2}, 2), ({"items": [1, 2, 3], "next": None}, 3), (None, 0), (5, 1)],
)
def test_what_counts_as_items(document: Any, items: int) -> None:
    """A list's entries, the entries of an object's only list, an object's members."""
    assert len(items_in(document)) == items


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ({"value": 1.5}, 1.5),
        ({"amount": 2}, 2),
        ({"price": 0.1}, 0.1),
        ({"id": "a", "name": "b"}, 0),
        (-3, -3),
        ("x", 0),
    ],
)
def test_a_valid_item_is_summed(item: Any, value: float) -> None:
    """Its value, amount or price; one without has none."""
    found = summarize([item, item])

    assert (found.valid, found.rejected, found.sum) == (2, 0, 2 * value)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (None, "should be an object, a number or a text"),
        (True, "should be an object, a number or a text"),
        ([1], "should be an object, a number or a text"),
        ({"value": "12"}, "value: Input should be a valid number"),
        ({"value": True}, "value: Input should be a valid number"),
        ({"value": 1e16}, "value: Input should be less than or equal to"),
        ({"id": 1.5}, "id: Input should be"),
        ({"name": "x" * 201}, "name: String should have at most 200 characters"),
    ],
)
def test_an_item_that_does_not_fit_is_rejected(item: Any, reason: str) -> None:
    """The reason names the place and the member, and never quotes."""
    [rejection] = summarize([{"id": 1}, item]).rejections

    assert rejection.index == 1
    assert rejection.reason.startswith(reason)


def test_sample_and_rejections_are_bounded() -> None:
    """Of many items a few are kept, all are counted."""
    found = summarize([1, None] * 10_000)

    assert (found.items, found.valid, found.rejected) == (20_000, 10_000, 10_000)
    assert (len(found.sample), len(found.rejections)) == (SAMPLE_ITEMS, REJECTIONS_KEPT)


@given(JSON)
def test_every_document_has_a_summary_in_json(document: Any) -> None:
    """Whatever was fetched: all items are valid or rejected, and the sum is a number."""
    found = summarize(document)

    assert found.valid + found.rejected == found.items == len(items_in(document))
    json.dumps(found.model_dump(), allow_nan=False)
