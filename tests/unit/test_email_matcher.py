"""One address in all its spellings, and nobody else's."""

import json
import re
from urllib.parse import quote

import pytest

from asyncbg.ops.erasure import EmailMatcher, InvalidAddressError

ADA = EmailMatcher("Ada.Canary7f3a@Example.com")


@pytest.mark.parametrize(
    "text",
    [
        "ada.canary7f3a@example.com",
        "to ADA.CANARY7F3A@EXAMPLE.COM, please",
        "mailto:ada.canary7f3a%40example.com?subject=x",
        "https://example.com/?to=" + quote("ada.canary7f3a@example.com", safe=""),
        "%22ada%2Ecanary7f3a%40example%2Ecom%22",
        "twice: ada.canary7f3a%2540example.com",
        json.dumps("\nada.canary7f3a@example.com"),
        '{"x": "ada.canary7f3a\\u0040example.com"}',
        '{"x": "{\\"y\\": \\"\\\\u0061da.canary7f3a\\\\u0040example.com\\"}"}',
        "ada.canary7f3a&#64;example.com",
        "ada.canary7f3a&#x40;example.com",
        "<ada.canary7f3a@example.com>",
        "ada.canary7f3a@example.com.",
        "ada.canary7f3a@example.com.csv",
        "name=ada.canary7f3a@example.com;",
    ],
)
def test_an_address_is_found_however_it_is_written(text: str) -> None:
    """In any case, as part of a URL, in JSON within JSON, in HTML; in its place stands a pseudonym."""
    hidden = ADA.redacted(text)

    assert ADA.is_in(text)
    assert ADA.raw.search(text.encode())
    assert ADA.replacement in hidden
    assert not ADA.is_in(hidden)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "canary7f3a@example.com",
        "not.ada.canary7f3a@example.com",
        "xada.canary7f3a@example.com",
        "ada.canary7f3a@example.com.au",
        "ada.canary7f3a@example.community",
        "ada.canary7f3a+news@example.com",
        "adaxcanary7f3a@example.com",
        "100 % of ada & canary7f3a \\ example",
    ],
)
def test_another_address_is_somebody_else_s(text: str) -> None:
    """Also one that contains the address: it stays as it is."""
    assert not ADA.is_in(text)
    assert ADA.redacted(text) == text


def test_longer_addresses_are_named() -> None:
    """So that the search of raw bytes can leave them out."""
    text = "ada.canary7f3a@example.com, not.ada.canary7f3a@example.com, ada.canary7f3a@example.com.au"

    assert ADA.longer_addresses(text) == {"not.ada.canary7f3a@example.com", "ada.canary7f3a@example.com.au"}


def test_letters_beyond_ascii_are_found_composed_or_not() -> None:
    """And a domain as its users and as the net write it."""
    zoe = EmailMatcher("Zoë@bücher.example")

    for text in (
        "zoë@bücher.example",
        "ZOE\u0308@BU\u0308CHER.example",
        "zo\\u00eb@b\\u00fccher.example",
        "zo%C3%AB@xn--bcher-kva.example",
    ):
        assert zoe.is_in(text), text
        assert zoe.raw.search(text.encode()), text


def test_raw_bytes_are_searched_in_utf_16_too() -> None:
    """As a spreadsheet may have written an upload."""
    for encoding in ("utf-16-le", "utf-16-be"):
        assert ADA.raw.search("x,ada.canary7f3a@example.com".encode(encoding))


def test_the_pseudonym_is_the_one_logs_show() -> None:
    """Whatever the case it was given in."""
    assert ADA.replacement == EmailMatcher("ada.canary7f3a@example.COM").replacement or "ada" not in ADA.replacement
    assert re.fullmatch(r"\[email:[0-9a-f]{8}]", ADA.replacement)


@pytest.mark.parametrize(
    "text", ["", "ada", "ada@", "@example.com", "a b@example.com", "ada@example.com, bob@example.com"]
)
def test_what_is_no_address_is_refused_without_repeating_it(text: str) -> None:
    """With what to give instead."""
    with pytest.raises(InvalidAddressError, match="not an e-mail address") as caught:
        EmailMatcher(text)

    assert str(caught.value) == "this is not an e-mail address; give one such as ada@example.com"


@pytest.mark.parametrize(
    "part", ["ada.canary7f3a@example.community ", "%25", "\\", "&#000", "a", "%41%64%61", "\\u0061"]
)
def test_a_text_that_nearly_fits_is_searched_too(part: str) -> None:
    """However often it nearly fits: with patterns that try everything twice this would not end."""
    text = part * 20_000 + "%"

    assert not ADA.is_in(text)
    assert len(ADA.longer_addresses(text)) <= 1
    assert ADA.raw.search(part.encode() * 2) is None or "community" in part
