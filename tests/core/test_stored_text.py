"""JSON as every reader takes it, and stored text read whatever is in it."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.core.clock import rfc3339
from asyncbg.core.job import ProgressValue
from asyncbg.core.stored_arguments import shown_arguments
from asyncbg.core.stored_text import dump_json, load_json, make_storable

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=[])), inner),
    max_leaves=8,
)


@given(ANY)
def test_what_is_dumped_every_reader_takes(value: Any) -> None:
    """No NaN, no lone surrogate, no line break; what is plain JSON comes back as it is."""
    text = dump_json(value)

    assert json.dumps(json.loads(text, parse_constant=pytest.fail), ensure_ascii=False).encode()
    assert "\n" not in text
    assert dump_json(load_json(text)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [math.nan, math.inf, -math.inf, 1.5]}, '{"a":[null,null,null,1.5]}'),
        (("a\ud800", "\U0001f600"), '["a?","\\ud83d\\ude00"]'),
        ({math.inf: 1}, '{"inf":1}'),
    ],
)
def test_what_json_does_not_have_becomes_the_nearest(value: Any, text: str) -> None:
    """Null for a number, a question mark for a half of a character."""
    assert dump_json(value) == text


ODD_TEXTS = [
    "",
    "{",
    "nonsense",
    "[" * 100_000,
    "NaN",
    '{"a": NaN}',
    "9" * 5_000,
    '"\\ud800"',
    "null",
    "[]",
    "7",
    '"x"',
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: text[:20])
def test_a_stored_text_never_raises(text: str) -> None:
    """Rows of an earlier version, of another hand, of a damaged disk: whoever looks at the job sees the rest."""
    json.dumps(load_json(text), allow_nan=False, ensure_ascii=False).encode()
    assert isinstance(shown_arguments(text), dict)
    json.dumps(ProgressValue.read(text).as_dict(), allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("ms", [10**30, -(10**30), 253_402_300_800_000, -62_135_596_800_001])
def test_a_time_that_no_calendar_has_is_the_nearest_one(ms: int) -> None:
    """A row from before such times were refused is shown all the same."""
    assert rfc3339(ms) in ("9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z")


@given(st.text(st.characters(exclude_categories=[])))
def test_what_a_task_says_is_made_storable(text: str) -> None:
    """It can be encoded, steers no terminal, and is of bounded length."""
    made = make_storable(text, most=20)

    assert len(made) <= 20
    made.encode()
    assert not set(made) & set("\0\x1b\r\x7f\u2028")
