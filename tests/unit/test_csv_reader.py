"""Reading CSV: what is taken, what is refused, and going on from any cursor."""

import contextlib
import csv
import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.service.integrations.csv_columns import MAX_FIELD_CHARS, HeaderError
from asyncbg.service.integrations.csv_encoding import CsvError, NotCsvError
from asyncbg.service.integrations.csv_reader import (
    MAX_ROW_BYTES,
    Batch,
    CsvCursor,
    Rejection,
    RowTooLongError,
    open_csv,
    read_batches,
)

ENCODINGS = {"utf-8": 0, "utf-8-sig": 3, "utf-16-le": 2, "utf-16-be": 2, "cp1252": 0}


def rows_of(data: bytes, *, batch_rows: int = 2_000, chunk_bytes: int = 262_144) -> list[list[str]]:
    """The rows that are taken from a whole file."""
    file = io.BytesIO(data)
    return list(taken(read_batches(file, open_csv(file).cursor, batch_rows=batch_rows, chunk_bytes=chunk_bytes)))


def taken(batches: Iterator[Batch]) -> Iterator[list[str]]:
    """The rows that were not rejected."""
    return (row for batch in batches for row in batch.rows if row is not None)


def rejections_of(data: bytes, *, chunk_bytes: int = 262_144) -> list[Rejection]:
    """What is rejected of a whole file."""
    file = io.BytesIO(data)
    batches = read_batches(file, open_csv(file).cursor, chunk_bytes=chunk_bytes)
    return [rejection for batch in batches for rejection in batch.rejections]


def filled(table: list[list[str]]) -> list[list[str]]:
    """The rows that hold more than blanks."""
    return [row for row in table if "".join(row).strip()]


def written(table: list[list[str]], encoding: str, *, delimiter: str = ",", quoting: int = csv.QUOTE_ALL) -> bytes:
    """The table as a file, after its byte order mark where the encoding wants one."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows(table)  # type: ignore[arg-type]  # a plain int
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    return (mark + text.getvalue()).encode(encoding)


# -- positions ---------------------------------------------------------------------------------------------------------

fields = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["\n", "\r", "\r\n", "\x0b\x85\u2028", '"', ",", ";", "é\n€", "𝄞", ""]
)
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(fields, min_size=width, max_size=width), min_size=1, max_size=12)
)


@given(tables, st.sampled_from(sorted(ENCODINGS)), st.integers(1, 5), st.integers(1, 40), st.sampled_from(",;\t|"))
def test_any_cursor_goes_on_with_exactly_the_rows_that_are_left(
    table: list[list[str]], encoding: str, batch_rows: int, chunk_bytes: int, delimiter: str
) -> None:
    """Whatever the fields, the encoding and the chunks, each batch's cursor stands exactly behind its last row."""
    if encoding == "cp1252":
        table = [[field.encode("cp1252", "ignore").decode("cp1252") for field in row] for row in table]
    file = io.BytesIO(written(table, encoding, delimiter=delimiter))
    name = encoding.removesuffix("-sig")
    start = CsvCursor(ENCODINGS[encoding], 0, tuple("abcd"[: len(table[0])]), delimiter, name)

    batches = list(read_batches(file, start, batch_rows=batch_rows, chunk_bytes=chunk_bytes))

    assert list(taken(iter(batches))) == filled(table)
    for batch in batches:
        rest = read_batches(file, batch.cursor, batch_rows=3, chunk_bytes=64)
        assert list(taken(rest)) == filled(table[batch.cursor.row :])
    assert batches[-1].cursor.offset == len(file.getvalue())


@given(st.binary(max_size=300), st.integers(1, 3), st.integers(1, 50))
def test_any_bytes_are_read_or_refused_the_same_whatever_the_chunks(
    data: bytes, batch_rows: int, chunk_bytes: int
) -> None:
    """Garbage never breaks the reader, and how it is cut into chunks changes nothing."""
    file = io.BytesIO(b"a,b\n" + data)
    start = CsvCursor(4, 1, ("a", "b"), ",", "utf-8")

    whole = [(batch.rows, batch.rejections) for batch in read_batches(file, start, batch_rows=1)]
    parts = list(read_batches(file, start, batch_rows=batch_rows, chunk_bytes=chunk_bytes))

    assert [row for batch in parts for row in batch.rows] == [row for rows, _ in whole for row in rows]
    assert [r for batch in parts for r in batch.rejections] == [r for _, rejected in whole for r in rejected]
    for batch in parts:
        again = next(read_batches(file, batch.cursor, batch_rows=1), None)
        if again:
            assert (again.rows, again.rejections) == whole[batch.cursor.row - 1]


@given(st.binary(max_size=300))
def test_any_file_is_opened_or_refused_with_our_own_error(data: bytes) -> None:
    """No content makes opening a file fail in another way than a CsvError."""
    with contextlib.suppress(CsvError):
        rows_of(data)


def test_quoted_line_breaks_belong_to_the_field() -> None:
    """A field may span lines, of any line end, and the rows after it keep their numbers."""
    data = b'name,note\r\nAda,"one\r\ntwo\nthree\rfour"\r\nBob\r\nEve,x\r\n'
    assert rows_of(data, chunk_bytes=7) == [["Ada", "one\r\ntwo\nthree\rfour"], ["Eve", "x"]]
    assert rejections_of(data) == [Rejection(3, None, "expected 2 columns, found 1")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_read(end: bytes) -> None:
    """LF, CRLF and CR end a row; the last row needs none."""
    assert rows_of(end.join([b"a,b", b"1,2", b"3,4"]), chunk_bytes=5) == [["1", "2"], ["3", "4"]]


# -- encodings and delimiters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_is_recognised(encoding: str) -> None:
    """UTF-8 with and without a mark, UTF-16 with one and Windows-1252 give the same text."""
    assert rows_of(written([["nom", "prix"], ["Zoé", "5 €"]], encoding)) == [["Zoé", "5 €"]]


@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_every_delimiter_is_recognised(delimiter: str) -> None:
    """The delimiter is the one that cuts the header and the rows alike, whatever stands in quotes."""
    table = [["name", "price, net", "note"], ["a", "1,5", "x;y"], ["b", "2,5", "z|\t"]]
    data = written(table, "utf-8", delimiter=delimiter, quoting=csv.QUOTE_MINIMAL)
    assert rows_of(data) == table[1:]


def test_a_latin_1_file_is_recognised_far_from_its_start() -> None:
    """The first text that is not ASCII decides, even when it comes after a megabyte."""
    data = b"name\n" + b"plain\n" * 200_000 + "José\n".encode("latin-1")
    assert rows_of(data)[-1] == ["José"]


def test_a_broken_character_costs_one_row_of_a_utf_8_file() -> None:
    """A row that is not valid UTF-8 is rejected by row and column; those around it are taken."""
    data = "name,city\nZoé,Paris\n".encode() + b"Jos\xe9,Lyon\nBob,\xff\xfe\n" + "Ève,Nîmes\n".encode()
    assert rows_of(data) == [["Zoé", "Paris"], ["Ève", "Nîmes"]]
    assert rejections_of(data) == [Rejection(3, 1, "is not valid UTF-8"), Rejection(4, 2, "is not valid UTF-8")]


def test_a_cut_off_utf_16_file_loses_only_its_last_row() -> None:
    """Half a character at the end of a UTF-16 file rejects the row it is in."""
    data = "\ufeffa,b\n1,2\n3,4".encode("utf-16-le") + b"5"
    assert rows_of(data) == [["1", "2"]]
    assert rejections_of(data) == [Rejection(3, 2, "is not valid UTF-16")]


# -- rows that are rejected --------------------------------------------------------------------------------------------


def test_ragged_rows_are_rejected_with_both_counts() -> None:
    """Too few and too many columns are rejected, the other rows taken."""
    data = b"a,b,c\n1,2,3\n1,2\n1,2,3,4\n4,5,6\n"
    assert rows_of(data) == [["1", "2", "3"], ["4", "5", "6"]]
    assert rejections_of(data) == [
        Rejection(3, None, "expected 3 columns, found 2"),
        Rejection(4, None, "expected 3 columns, found 4"),
    ]


def test_a_nul_character_rejects_its_row() -> None:
    """A NUL is rejected by row and column."""
    data = b"a,b\n1,2\n3,\x004\n5,6\n"
    assert rows_of(data) == [["1", "2"], ["5", "6"]]
    assert rejections_of(data) == [Rejection(3, 2, "contains a NUL character")]


def test_blank_lines_are_skipped_and_counted() -> None:
    """A blank line is no row and no rejection, but it counts in the row numbers as in a spreadsheet."""
    data = b"\n\na,b\n\n1,2\n\n3\n"
    assert rows_of(data) == [["1", "2"]]
    assert rejections_of(data) == [Rejection(7, None, "expected 2 columns, found 1")]


@pytest.mark.parametrize("chunk_bytes", [1_000, 262_144])
@pytest.mark.parametrize("length", [MAX_FIELD_CHARS + 1, 200_000])
def test_an_overlong_field_rejects_its_row_only(length: int, chunk_bytes: int) -> None:
    """A field over the limit costs its row, even with line breaks in it; the next row is read as usual."""
    field = b'"' + b"x" * (length - 2) + b'\ny"'
    data = b"a,b\n1,2\n3," + field + b"\n5,6\n"
    assert rows_of(data, chunk_bytes=chunk_bytes) == [["1", "2"], ["5", "6"]]
    (rejection,) = rejections_of(data, chunk_bytes=chunk_bytes)
    assert (rejection.row, rejection.reason) == (3, "a field is longer than 65,536 characters")


def test_a_quote_that_is_never_closed_is_rejected() -> None:
    """What an unclosed quote swallows to the end of the file is one rejected row."""
    data = b'a,b\n1,2\n3,"4\n5,6\n'
    assert rows_of(data) == [["1", "2"]]
    assert rejections_of(data) == [Rejection(3, None, "a quoted field is not closed before the end of the file")]


@pytest.mark.parametrize("chunk_bytes", [10_000, 262_144, 4_194_304])
@pytest.mark.parametrize("filler", [b"x" * (MAX_ROW_BYTES + 10), b'"x\n",' * 300_000, b'"' + b"x\n" * 900_000])
def test_a_row_over_a_mebibyte_ends_the_reading(filler: bytes, chunk_bytes: int) -> None:
    """The rows before an endless one are taken, then the error names its row; memory stays bounded."""
    file = io.BytesIO(b"a,b\n1,2\n3,4\n" + filler + b"\n5,6\n")
    batches = read_batches(file, open_csv(file).cursor, chunk_bytes=chunk_bytes)

    assert next(batches).rows == [["1", "2"], ["3", "4"]]
    with pytest.raises(RowTooLongError, match="row 4 is longer than 1,048,576 bytes"):
        next(batches)


# -- files that are refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "nothing but blank lines"),
        (b"\n\r\n\n", "nothing but blank lines"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
        (b"PK\x03\x04\x14\0\x06\0", "binary"),
        (b"%PDF-1.7\n%\xe2\xe3", "binary"),
        (bytes(range(256)) * 8, "binary"),
        (b'{"name": "Ada"}', "JSON"),
        (b'[{"name": "Ada"}]', "JSON"),
        (b"<!DOCTYPE html><p>hello", "HTML"),
        ("name,age\nAda,36\n".encode("utf-32-le"), "UTF-32"),
        (b"\0" * 100, "zero bytes"),
        ("\ufeffname,age\n".encode("utf-32-le"), "UTF-32"),
        (b"na\0me,age\n1,2\n", "not text"),
        (b'name,"age\n1,2\n', "not closed"),
    ],
)
def test_what_is_no_csv_is_refused_by_what_it_is(data: bytes, reason: str) -> None:
    """An empty, binary or structured file is refused as a whole, and the message says why."""
    with pytest.raises(NotCsvError, match=reason):
        rows_of(data)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"name,secret, name ", "column 3 of the header has the same name as column 1"),
        (b",".join(b"c%d" % n for n in range(1_001)), "the header has 1,001 columns; at most 1,000 are allowed"),
    ],
)
def test_a_header_that_cannot_name_the_columns_is_refused(header: bytes, reason: str) -> None:
    """Repeated names and too many columns are refused by position, never by value."""
    with pytest.raises(HeaderError) as caught:
        rows_of(header + b"\n1,2,3\n")
    assert str(caught.value) == reason


def test_a_header_alone_is_a_file_of_no_rows() -> None:
    """A file with a header and nothing else is read; it has no rows."""
    assert rows_of(b"name,age\n") == []
