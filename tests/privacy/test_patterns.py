"""The pattern net on the labelled lines: what it must find, what it must leave alone."""

import pytest

from tests.privacy.corpus import SETS, clean_lines, figures, personal_lines


@pytest.mark.parametrize("name", SETS)
def test_nearly_everything_personal_is_hidden(name: str) -> None:
    """At least 97 in 100 marked values, of each set."""
    assert figures(personal_lines(name), clean_lines(name)).recall >= 0.97


@pytest.mark.parametrize("name", SETS)
def test_hardly_a_clean_line_is_altered(name: str) -> None:
    """At most 5 in 1,000 clean lines, of each set."""
    assert figures(personal_lines(name), clean_lines(name)).false_alarms <= 0.005


@pytest.mark.parametrize("kind", ["email", "phone", "card", "iban", "secret"])
def test_each_kind_is_hidden(kind: str) -> None:
    """No kind hides behind the others in the average."""
    hit, count = figures(personal_lines(), clean_lines()).found[kind]

    assert count >= 30
    assert hit / count >= 0.97
