"""Multipart bodies as the world sends them: cut anywhere, with padding, preambles and every form of a file's name."""

import base64
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.service.multipart import (
    EncodingUnsupportedError,
    End,
    Headers,
    MultipartError,
    MultipartParser,
    decoder_of,
    file_name_of,
    parameters,
)

HEAD = b'Content-Disposition: form-data; name="file"'


def parsed(body: bytes, *, step: int = 1_000_000, boundary: bytes = b"b") -> list[tuple[dict[str, str], bytes]]:
    """The parts of a body that arrives ``step`` bytes at a time."""
    parser, parts, ended = MultipartParser(boundary), [], False
    for at in range(0, len(body) + step, step):
        for piece in parser.write(body[at : at + step], is_last=at >= len(body)):
            match piece:
                case Headers(fields):
                    parts.append((dict(fields), b""))
                case bytes():
                    parts[-1] = (parts[-1][0], parts[-1][1] + piece)
                case End():
                    ended = True
    assert ended
    return parts


def content(body: bytes, *, step: int = 1_000_000) -> list[bytes]:
    """What the parts of a body hold."""
    return [data for _, data in parsed(body, step=step)]


lines = st.lists(
    st.sampled_from([b"\r\n", b"\n", b"\r", b"--", b"--b", b"\r\n--", b"\r\n--bx", b"\r\n--b--x", b"-", b"a,b", b" "]),
    max_size=12,
).map(b"".join)


@given(st.lists(lines, min_size=1, max_size=3), st.integers(1, 30))
def test_any_content_comes_out_as_it_went_in_however_the_body_is_cut(contents: list[bytes], step: int) -> None:
    """Also lines that begin like a boundary, and whatever the pieces that the body arrives in."""
    contents = [data for data in contents if b"\r\n--b\r\n" not in b"\r\n" + data + b"\r\n"]
    contents = [data for data in contents if not (b"\r\n" + data).rstrip(b" \r").endswith(b"\r\n--b")]
    body = b"".join(b"--b\r\n" + HEAD + b"\r\n\r\n" + data + b"\r\n" for data in contents) + b"--b--\r\n"
    if b"--b \r\n" in body or b"--b--\n" in body[:-2] or body.count(b"\r\n--b--\r\n") > 1:
        return
    assert content(body, step=step) == contents


@pytest.mark.parametrize("step", [1, 3, 1_000_000])
@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n" + HEAD + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + HEAD + b"\r\n\r\nx\r\n--b--",
        b"--b\r\n" + HEAD + b"\r\n\r\nx\r\n--b--\n",
        b"\r\n--b\r\n" + HEAD + b"\r\n\r\nx\r\n--b--\r\n",
        b"This is a multi-part message in MIME format.\r\n\r\n--b\r\n" + HEAD + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b \t \r\n" + HEAD + b"\r\n\r\nx\r\n--b--  \r\n",
        b"--b\r\n" + HEAD + b"\r\n\r\nx\r\n--b--\r\nThe epilogue\r\n--b\r\nsays nothing",
    ],
)
def test_a_body_may_have_a_preamble_padding_and_an_epilogue(body: bytes, step: int) -> None:
    """RFC 2046, 5.1.1: all three are skipped."""
    assert content(body, step=step) == [b"x"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"--b\r\n" + HEAD + b"\r\n\r\nx",
        b"--b\r\n" + HEAD + b"\r\n\r\nx\r\n--b\r\n",
        b"--b\r\nno colon\r\n\r\nx\r\n--b--",
        b"--b\r\n" + b"X: y\r\n" * 9 + b"\r\nx\r\n--b--",
        b"--b\r\nX: " + b"y" * 5_000,
        b"x" * 70_000,
    ],
)
@pytest.mark.parametrize("step", [7, 1_000_000])
def test_a_malformed_body_is_an_error_that_says_what_is_wrong(body: bytes, step: int) -> None:
    """An unfinished body, headers that are none or too many, and a preamble without end."""
    with pytest.raises(MultipartError, match=r"\w+ \w+"):
        parsed(body, step=step)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="file"; filename="a.csv"', "a.csv"),
        ("form-data; name=file; filename=a.csv", "a.csv"),
        ('form-data; filename="a;b.csv"; name="file"', "a;b.csv"),
        ('form-data; name="file"; filename="a \\"b\\".csv"', 'a "b".csv'),
        ('form-data; name="file"; filename="a%22b.csv"', 'a"b.csv'),
        ('form-data; name="file"; filename="C:\\Users\\ada\\t.csv"', "C:\\Users\\ada\\t.csv"),
        ("form-data; name=file; filename*=utf-8''Ums%C3%A4tze.csv", "Umsätze.csv"),
        ("form-data; name=file; FileName*=UTF-8'de'Ums%C3%A4tze.csv", "Umsätze.csv"),
        ("form-data; name=file; filename*=iso-8859-1''Ums%E4tze.csv", "Umsätze.csv"),
        ("form-data; name=file; filename*=\"utf-8''Ums%C3%A4tze.csv\"", "Umsätze.csv"),
        ("form-data; name=file; filename=\"Ums_tze.csv\"; filename*=utf-8''Ums%C3%A4tze.csv", "Umsätze.csv"),
        ("form-data; name=file; filename*=utf-8''Ums%C3%A4tze.csv; filename=\"Ums_tze.csv\"", "Umsätze.csv"),
        ("form-data; name=file; filename=\"plain.csv\"; filename*=nonsense''%FF", "plain.csv"),
        ("form-data; name=file; filename*0=Ums; filename*1*=%C3%A4tze.csv", "Umsätze.csv"),
        ('form-data; name=file; filename="=?utf-8?B?VW1zw6R0emUuY3N2?="', "Umsätze.csv"),
        ('form-data; name=file; filename=""', ""),
        ("form-data; name=file", None),
    ],
)
def test_every_form_of_a_file_name_is_read(disposition: str, name: str | None) -> None:
    """Quoted, plain, extended (RFC 5987, RFC 2231), beside each other, and encoded words of mail libraries."""
    assert parameters(disposition)["name"] == "file"
    assert file_name_of(parameters(disposition)) == name


def test_a_header_is_parsed_in_linear_time() -> None:
    """A quote that is never closed behind thousands of backslashes costs nothing."""
    assert parameters("form-data; name=file; filename=" + '"' + "\\" * 4_001)["name"] == "file"


@given(st.binary(max_size=200), st.integers(1, 50))
def test_base64_and_quoted_printable_are_decoded_however_they_are_cut(data: bytes, step: int) -> None:
    """Piece by piece, with the line breaks of the encoding."""
    for encoding, encoded in (
        ("base64", base64.encodebytes(data)),
        ("Quoted-Printable", quopri.encodestring(data).replace(b"\r", b"=0D")),
    ):
        decoder = decoder_of(encoding)
        assert decoder
        pieces = [decoder.decode(encoded[at : at + step]) for at in range(0, len(encoded), step)]
        assert b"".join(pieces) + decoder.decode(b"", is_last=True) == data


def test_other_transfer_encodings_are_told_apart() -> None:
    """Those that change nothing need no decoder; an unknown one is an error, and so is base64 that is none."""
    assert [decoder_of(name) for name in ("", "7bit", "8BIT", "binary")] == [None] * 4
    with pytest.raises(EncodingUnsupportedError):
        decoder_of("x-uuencode")
    decoder = decoder_of("base64")
    assert decoder
    with pytest.raises(MultipartError, match="base64"):
        decoder.decode(b"####")
