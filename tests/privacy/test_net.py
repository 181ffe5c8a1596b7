"""The pattern net on the labelled lines: what it must find, what it must leave alone."""

import pytest

from tests.privacy.corpus import clean_lines, figures, personal_lines

SETS = [
    ("personal.txt", "clean.txt"),
    ("holdout_personal.txt", "holdout_clean.txt"),
    ("second_personal.txt", "second_clean.txt"),
    ("third_personal.txt", "third_clean.txt"),
]


@pytest.mark.parametrize(("personal", "clean"), SETS)
def test_nearly_everything_personal_is_hidden(personal: str, clean: str) -> None:
    """At least 97 in 100 marked values, of each set."""
    assert figures(personal_lines(personal), clean_lines(clean)).recall >= 0.97


@pytest.mark.parametrize(("personal", "clean"), SETS)
def test_hardly_a_clean_line_is_altered(personal: str, clean: str) -> None:
    """At most 5 in 1,000 clean lines, of each set."""
    assert figures(personal_lines(personal), clean_lines(clean)).false_alarms <= 0.005


@pytest.mark.parametrize("kind", ["email", "phone", "card", "iban", "secret"])
def test_each_kind_is_hidden(kind: str) -> None:
    """No kind hides behind the others in the average."""
    hit, count = figures(personal_lines(), clean_lines()).found[kind]

    assert count >= 30
    assert hit / count >= 0.97
