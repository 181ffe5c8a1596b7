"""All fake personal data in tests/ is tagged, or is one of the known numbers: otherwise the canary would not see it.

The patterns are simple, and none of them is one of the net's.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .people import NUMBERS, TAG
from .search import bare

TESTS = Path(__file__).parent.parent
TEXTS = {".py", ".js", ".html", ".json", ".toml", ".txt"}

OF_THE_NET = {
    "canary/test_tagged.py": "bad examples of the patterns below",
    "canary/people.py": "the tag is put into each datum there",
    "privacy/corpus.py": "reads the labelled sets",
    "privacy/measure.py": "hostile texts for the net",
    "privacy/test_redaction.py": "the net's own tests: every form of a datum there is, and what only looks like one",
    "unit/test_email_matcher.py": "every form of one address there is, and its near misses",
    "egress_forms.py": "URLs that must not be asked: their form is what is tested",
}
"""Not scanned, and why; the labelled sets, ``privacy/*.txt``, are not either."""

NOT_PERSONAL = {
    "service@example.com": "the service's own address",
    "app@example.com": "the service's own address",
    "security@example.com": "whom to tell of a hole in the service",
    "localhost@evil.example": "a Host header",
    "secret": "the name of a kind of personal data",
    "no-brackets@example.com": "a Message-ID that is none",
    "1@example.com": "a Message-ID",
    "0190a5c2-7d3e-7abc-8def-0123456789ab@asyncbg.example.com": "a Message-ID",
}

EMAIL = re.compile(r"[\w.+-]*\w(?:@|%40)\w[\w.-]*\.(?:com|example|test|org|net|invalid)\b(?:\.\w+)?")
PHONE = re.compile(r"(?<![\w.+-])(?:\+|00(?=[1-9])|%2B|\()\d[\d ()/-]{7,}\d")
CARD = re.compile(r"(?<![\w.:-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w.:-])")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
NAME = re.compile(r"\b(?:Ada|Bob|Eve|Alice)(?: |%20|\+)(?!Depends|and\b)[A-Z]\w{3,}\b")
SECRET = re.compile(
    r"""(?i:password|secret|token|api_key)["']?\]?\s*[:=]\s*(?:SecretStr\()?b?["'](?P<value>[^"'{}\s*]{6,})["']"""
    r"""|[?&"'\s](?i:password|secret|token)=(?P<pair>(?!SecretStr)[^\s"'&{}()*]{6,})"""
    r"""|\b[Bb]earer (?P<bearer>[^\s"'={]{6,})(?=["'])"""
    r"""|\b(?P<prefixed>(?:whsec|ghp)_\w{8,}[\w+/=]*|(?:hunter2|s3cret)[\w-]*)"""
)


def found_in(text: str) -> Iterator[str]:
    """What looks like personal data in a text and carries no tag."""
    known = {bare(number.encode()).decode() for number in NUMBERS}
    for pattern in (EMAIL, NAME, SECRET):
        for found in pattern.finditer(text):
            shown = next((value for value in found.groups() if value), found[0])
            if TAG not in shown.lower() and shown not in NOT_PERSONAL:
                yield shown
    for pattern in (PHONE, CARD, IBAN):
        for found in pattern.finditer(text):
            digits = bare(found[0].encode()).decode()
            is_meant = pattern is not CARD or _passes_luhn(digits)
            if is_meant and not any(digits in one or one in digits for one in known):
                yield found[0]


def _passes_luhn(digits: str) -> bool:
    doubled = [sum(divmod(int(digit) * (1 + place % 2), 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def scanned() -> Iterator[str]:
    """Every text below tests/ but those of the net, by its path from there."""
    for path in sorted(TESTS.rglob("*")):
        name = path.relative_to(TESTS).as_posix()
        is_labelled = name.startswith("privacy/") and path.suffix == ".txt"
        if path.suffix in TEXTS and not is_labelled and name not in OF_THE_NET:
            yield name


@pytest.mark.parametrize("name", list(scanned()))
def test_personal_data_is_tagged(name: str) -> None:
    """Addresses, names, phones, cards, IBANs and secrets, wherever they stand in the file."""
    assert list(found_in((TESTS / name).read_text("utf-8"))) == []


def test_what_is_not_scanned_is_there() -> None:
    """An exception for a file that is gone is one too many."""
    assert [name for name in OF_THE_NET if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize(
    "text",
    [
        "ada@example.com", "/to/bob%40example.org?x", "Ada Lovelace", "Ada%20Lovelace", "+44 20 7946 0018",
        "(202) 555-0199", "5500 0055 5555 5559", "4012888888881881", "GB82 WEST 1234 5698 7654 32",
        "password='swordfish'", '"token": "abcdefgh"',
        "?token=abcdefgh&", '"Bearer abcdefgh"', "whsec_MfKQ9r8GKYqrTwjUPD8ILPZI",
        'password=SecretStr("swordfish")', "hunter2",
    ],
)  # fmt: skip
def test_the_patterns_find(text: str) -> None:
    """What this test is for."""
    assert list(found_in(f"x = 1  # {text} y"))
