"""URLs as text: what is legal stays byte for byte, what is not is quoted, references are resolved by RFC 3986."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.service.integrations.egress import EgressPolicy
from asyncbg.service.integrations.url_text import UrlText

RFC_3986 = {
    "g": "http://a/b/c/g", "./g": "http://a/b/c/g", "g/": "http://a/b/c/g/", "/g": "http://a/g", "//g": "http://g",
    "?y": "http://a/b/c/d;p?y", "g?y": "http://a/b/c/g?y", "#s": "http://a/b/c/d;p?q", "g#s": "http://a/b/c/g",
    ";x": "http://a/b/c/;x", "": "http://a/b/c/d;p?q", ".": "http://a/b/c/", "./": "http://a/b/c/",
    "..": "http://a/b/", "../": "http://a/b/", "../g": "http://a/b/g", "../..": "http://a/", "../../": "http://a/",
    "../../g": "http://a/g", "../../../g": "http://a/g", "/./g": "http://a/g", "/../g": "http://a/g",
    "g.": "http://a/b/c/g.", "..g": "http://a/b/c/..g", "./../g": "http://a/b/g", "./g/.": "http://a/b/c/g/",
    "g/./h": "http://a/b/c/g/h", "g/../h": "http://a/b/c/h", "g;x=1/../y": "http://a/b/c/y",
    "g?y/../x": "http://a/b/c/g?y/../x", "?": "http://a/b/c/d;p?", "https://h/a/../b": "https://h/b",
}  # fmt: skip


@pytest.mark.parametrize(("reference", "expected"), RFC_3986.items())
def test_a_reference_is_resolved(reference: str, expected: str) -> None:
    """The examples of RFC 3986, 5.4, and an empty query, which stays one."""
    assert str(UrlText.split("http://a/b/c/d;p?q").resolve(UrlText.split(reference))) == expected


@pytest.mark.parametrize(
    "target",
    [
        "/d?sig=ab%2Fcd%2Be%3D", "/d?sp=%2Ftriggers%2Fmanual%2Frun&sig=x", "/d?u=http%3A%2F%2Fx%2Fy", "/d?a=1%2C2",
        "/d?to=ada.canary7f3a%40canary7f3a.example",
        "/d?q=it%27s", "/a%3Ab", "/a%40b", "/o%28x%29%27", "/a%2cb", "/a?", "/?", "/?a=&&b",
        "/a//b/", "/a/./b/../c", "/%7euser/%7Euser", "/100%", "/%zz", "/a+b?c+d", "/a;b=1,2?x[]=1&y[a]=2",
        "/!$&'()*+,;=:@", "/-._~", "/a?b?c/d", "/" + "a" * 7_900,
        "/d?X-Amz-Credential=AKIA%2F20261130%2Fus-east-1%2Fs3%2Faws4_request",
    ],
)  # fmt: skip
def test_a_legal_target_stays_byte_for_byte(target: str) -> None:
    """A signature may cover it: escapes stay escapes, in their case, dots and empty queries stay too."""
    assert EgressPolicy().check_url(f"https://example.com{target}#fragment").raw_path_qs == target


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/caf\u00e9?q=\u00fc", "/caf%C3%A9?q=%C3%BC"),
        ("/a|b^c`d{e}", "/a%7Cb%5Ec%60d%7Be%7D"),
        ('/"<>?"<>', "/%22%3C%3E?%22%3C%3E"),
        ("", "/"),
        ("?a=%2f", "/?a=%2f"),
        ("/\u2603%2F", "/%E2%98%83%2F"),
    ],
)
def test_what_is_not_legal_is_quoted(target: str, asked: str) -> None:
    """And nothing else."""
    assert EgressPolicy().check_url(f"http://example.com{target}").raw_path_qs == asked


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"/caf\xe9.json", "/caf%E9.json"),
        ("/caf\u00e9.json".encode(), "/caf%C3%A9.json"),
        (b"/i?q=caf\xe9&n=1", "/i?q=caf%E9&n=1"),
        (b"/a b/c?d e", "/a%20b/c?d%20e"),
        (b"http://h/a b", "http://h/a%20b"),
        (b" /a%2Fb \t", "/a%2Fb"),
        ("//b\u00fccher.example/\u00fc".encode(), "//b\u00fccher.example/%C3%BC"),
        (b"/d?sig=ab%2Fcd%3D%3D", "/d?sig=ab%2Fcd%3D%3D"),
    ],
)
def test_a_location_is_read_as_it_came(location: bytes, expected: str) -> None:
    """Bytes that are not legal are quoted one by one, blanks too, relative or absolute, as browsers do."""
    assert str(UrlText.of_location(location)) == expected


def test_a_host_in_unknown_bytes_is_refused() -> None:
    """It names no host for sure."""
    with pytest.raises(UnicodeDecodeError):
        UrlText.of_location(b"//caf\xe9.example/")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="\\\x7f\xa0#?"), max_size=30))
def test_every_target_is_sent_in_legal_characters(path: str) -> None:
    """Whatever is in a path, the request line holds ASCII without blanks, and quoting again changes nothing."""
    quoted = UrlText.split(f"http://h/{path}").quoted()

    assert quoted.target.isascii()
    assert " " not in quoted.target
    assert quoted.quoted() == quoted
