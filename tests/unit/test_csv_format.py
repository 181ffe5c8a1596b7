"""How a CSV file is written, found out from its bytes: encoding, delimiter, header, what is filled up and left out."""

# ruff: noqa: RUF001 - letters of many alphabets, on purpose

import io
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.service.integrations.csv_encoding import NotCsvError
from asyncbg.service.integrations.csv_format import DeclaredFormat
from asyncbg.service.integrations.csv_reader import OpenedCsv, Rejection, open_csv, read_batches
from asyncbg.service.integrations.csv_row import escaped, is_whole_row, raw_cells, unescaped

TABLE = [["Ada", "London"], ["Bob", "Paris"]]


@dataclass(frozen=True, slots=True)
class Read:
    """A whole file that was read."""

    opened: OpenedCsv
    rows: list[list[str]]
    rejections: list[Rejection]
    blank: int

    @property
    def header(self) -> list[str]:
        """The names of its columns."""
        return list(self.opened.cursor.header)

    @property
    def told(self) -> str:
        """All of its warnings."""
        return "; ".join(self.opened.warnings)


def read(
    data: bytes | str, *, charset: str | None = None, encoding: str | None = None, delimiter: str | None = None
) -> Read:
    """Read a file; a text is UTF-8."""
    file = io.BytesIO(data.encode() if isinstance(data, str) else data)
    opened = open_csv(file, DeclaredFormat(charset, encoding, delimiter))
    batches = list(read_batches(file, opened.cursor, chunk_bytes=50))
    rows = [row for batch in batches for row in batch.rows if row is not None]
    rejections = [rejection for batch in batches for rejection in batch.rejections]
    return Read(opened, rows, rejections, sum(batch.blank for batch in batches))


# -- columns and rows that hold nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "name,city,\nAda,London,\nBob,Paris,\n",
        "name;city;\r\nAda;London;\r\nBob;Paris;\r\n",
        "name,city,,,\nAda,London,,,\nBob,Paris,,,\n",
        "name,city,,,\nAda,London\nBob,Paris,\n",
        "name,city\nAda,London,\nBob,Paris,,,\n",
        'name,city,""\nAda,London," "\nBob,Paris,\n',
        "name,,city\nAda,,London\nBob,,Paris\n",
        ",name,city\n,Ada,London\n,Bob,Paris\n",
        "name\t \tcity\t\nAda\t\tLondon\nBob\t \tParis\t\n",
    ],
)
def test_columns_that_are_empty_in_header_and_rows_are_left_out(data: str) -> None:
    """Trailing delimiters and the ghost columns of spreadsheets, wherever they stand."""
    found = read(data)
    assert (found.header, found.rows, found.rejections) == (["name", "city"], TABLE, [])


@pytest.mark.parametrize(
    ("data", "header", "row"),
    [
        ("name,city,\nAda,London,x\n", ["name", "city", "column_3"], ["Ada", "London", "x"]),
        (",name\n0,Ada\n", ["column_1", "name"], ["0", "Ada"]),
        ("name,,city,\n,x,London,\n", ["name", "column_2", "city"], ["", "x", "London"]),
        ("column_2,\n1,2\n", ["column_2", "column_2_"], ["1", "2"]),
        ("name,\n" + "Ada,\n" * 9_000 + "Bob,x\n", ["name", "column_2"], ["Ada", ""]),
    ],
)
def test_a_column_with_values_and_no_name_gets_one(data: str, header: list[str], row: list[str]) -> None:
    """Its place is its name, also where the value comes far below; the warnings tell."""
    found = read(data)
    assert (found.header, found.rows[0], found.rejections) == (header, row, [])
    assert "has no name; it is called column_" in found.told


def test_a_value_that_comes_too_late_for_a_name_is_rejected_by_its_column() -> None:
    """A file is searched for such values from its start on, not without end."""
    found = read("name,\n" + ("x" * 60_000 + ",\n") * 160 + "Bob,y\n")
    assert (found.header, len(found.rows)) == (["name"], 160)
    assert [(one.row, one.column) for one in found.rejections] == [(162, 2)]


def test_rows_of_blanks_are_skipped_and_counted() -> None:
    """Whatever kind of nothing they hold."""
    found = read('name,city\n,\nAda,London\n  , \n""," "\n\n\t,\u00a0\nBob,Paris\n')
    assert (found.rows, found.rejections, found.blank) == (TABLE, [], 5)


def test_rows_are_numbered_as_in_a_spreadsheet_whatever_stands_above() -> None:
    """Titles, blank rows and skipped ones count."""
    found = read("People of 2024\n\nname,city\nAda,London\n,\nBob\n")
    assert found.rejections == [Rejection(6, None, "expected 2 columns, found 1")]


# -- lines above the header --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "above",
    [
        "Report 2024\n",
        "Report 2024\n\n",
        '"Report, of 2024"\n',
        "Report 2024,\n",
        ",Report of all\n",
        "# exported by x\n",
        "# exported by x, at noon\n",
        "#a\n#b\n#c,d,e\n",
        "Report\nof 2024\n\n",
    ],
)
@pytest.mark.parametrize("encode", ["utf-8-sig", "utf-16", "cp1252"])
def test_titles_and_comments_above_the_header_are_skipped_and_told(above: str, encode: str) -> None:
    """What is no part of the table is not its header."""
    found = read((above + "name,city\nAda,London\nBob,Paris\n").encode(encode))
    assert (found.header, found.rows) == (["name", "city"], TABLE)
    assert "above the header" in found.told


@pytest.mark.parametrize(
    ("data", "header"),
    [
        ("#name,city\nAda,London\nBob,Paris\n", ["#name", "city"]),
        ("name\nAda\nBob\n", ["name"]),
        ("price\n1,5\n2,5\n3,5\n", ["price"]),
        ("address\nMain St, Springfield\nOak St, Shelbyville\n", ["address"]),
        ("notes\nhello, world\nplain\n", ["notes"]),
        ("name,\nAda,x\nBob,y\n", ["name", "column_2"]),
        ("id,,\n1,a,b\n2,c,d\n", ["id", "column_2", "column_3"]),
        ("a,b\n1\n2\n", ["a", "b"]),
    ],
)
def test_a_header_is_not_taken_for_a_title(data: str, header: list[str]) -> None:
    """A comment sign before the first name, one column whose values hold commas, names that are missing."""
    assert read(data).header == header


def test_a_file_of_one_column_keeps_what_separates_elsewhere() -> None:
    """And the warnings tell that it may have been meant otherwise."""
    found = read("price\n1,5\n2,5\n3,5\n")
    assert (found.rows, found.rejections) == ([["1,5"], ["2,5"], ["3,5"]], [])
    assert "read as one column" in found.told


# -- delimiters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["sep=;", "SEP=;", '"sep=;"', "'sep=;'", "sep=;;;", "sep=; ", '"sep=;";;'], ids=repr
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_a_line_that_names_the_delimiter_is_followed_and_skipped(line: str, end: str, encoding: str) -> None:
    """Excel's ``sep=``, in every form, encoding and line end."""
    found = read(end.join([line, "name;city", "Ada;London, West", "Bob;Paris, East", ""]).encode(encoding))
    assert (found.header, found.rows) == (["name", "city"], [["Ada", "London, West"], ["Bob", "Paris, East"]])
    assert (found.opened.cursor.delimiter, found.opened.delimiter_source) == (";", "declared")


@pytest.mark.parametrize("delimiter", [*",\t|;^~:", "§"])
def test_a_named_delimiter_may_be_any(delimiter: str) -> None:
    """Also those that nobody would look for."""
    data = f"sep={delimiter}\nname{delimiter}city\nAda{delimiter}London\nBob{delimiter}Paris\n"
    assert read(data).rows == TABLE
    assert read(data.split("\n", 1)[1], delimiter=delimiter).rows == TABLE


@pytest.mark.parametrize("header", ["sep=", "sep=x,y", "sep", "sep=ab"])
def test_what_only_looks_like_it_is_a_header(header: str) -> None:
    """No delimiter is named."""
    assert read(f"{header}\n1,2\n" if "," in header else f"{header}\n1\n").header == header.split(",")


@pytest.mark.parametrize(
    ("data", "delimiter"),
    [
        ("name;price, net\nx;1,5\ny;2,5\n", ";"),
        ("a, b;c\n1, 2;3\n", ";"),
        ("a,b|c\n1,2|3\n", "|"),
        ("a,b;c\n1,2;3\n", ";"),
        ("a;b\tc\n1;2\t3\n", "\t"),
        ("id,tags\n1,a;b\n2,c;d\n", ","),
        ("id;text\n1;x, y, z\n2;u\n3;v, w\n", ";"),
        ("time,value\n12:00,1\n", ","),
        ('a,b\n"x;y;z",1\n"u;v;w",2\n', ","),
        ("Umsatz, 2024\nname;city\nA;B\nC;D\n", ";"),
    ],
)
def test_the_delimiter_is_the_one_under_which_the_rows_fit_the_header(data: str, delimiter: str) -> None:
    """A tie goes to the one without blanks behind it, then to the rarer."""
    found = read(data)
    assert (found.opened.cursor.delimiter, found.opened.delimiter_source) == (delimiter, "guessed")


def test_a_delimiter_that_fits_badly_is_told_where_another_would_do() -> None:
    """Where only one cuts the header there is nothing to doubt: the rows are bad."""
    assert "weak guess" in read("a,b;c\n1\n2\n3,4\n").told
    assert read("a,b,c\n1\n2\n3,4,5\n").told == ""


@pytest.mark.parametrize(
    ("data", "quoting"),
    [("a,b\n1,2\n", "none"), ('a,b\n"1",2\n', "minimal"), ('"a","b"\n"1","2"\n', "all")],
)
def test_the_quoting_is_told(data: str, quoting: str) -> None:
    """By the words of Python's csv module."""
    assert read(data).opened.quoting == quoting


# -- what is no CSV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"<TICKER>,<PER>,<DATE>\nA,D,20240101\nB,D,20240102\n",
        b'["a"],["b"]\n1,2\n',
        b"<a;b\n1;2\n",
        b"GIF89,size\nx,1\n",
    ],
)
def test_what_has_columns_is_data_whatever_it_begins_with(data: bytes) -> None:
    """The names of a stock exchange's columns stand in angle brackets."""
    assert read(data).rejections == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>\n<body>a, b</body>\n</html>\n", "HTML"),
        (b'<?xml version="1.0"?>\n<a>\n<b c="1,2"/>\n</a>\n', "XML"),
        (b'{"a": 1, "b": 2}\n{"a": 3, "b": 4}\n', "JSON"),
        (b'[\n  {"a": 1, "b": 2},\n  {"a": 3, "b": 4}\n]\n', "JSON"),
        (b"[1, 2]", "JSON"),
        (b"\xef\xbb\xbf<html></html>", "HTML"),
        ("<html></html>\n".encode("utf-16"), "HTML"),
        (b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0" + bytes(range(200)), "xlsx"),
        (b"\x1f\x8b\x08\0" + bytes(range(100)), "unpack it"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100 + bytes(range(99)), "Excel"),
    ],
)
def test_what_has_no_columns_is_refused_by_what_it_is(data: bytes, why: str) -> None:
    """And the message says what to do."""
    with pytest.raises(NotCsvError, match=why):
        read(data)


# -- encodings ---------------------------------------------------------------------------------------------------------

RUSSIAN = "имя,город\nИван,Москва\nМария,Санкт-Петербург\n"


@pytest.mark.parametrize(
    ("charset", "codec", "text", "shown"),
    [
        ("windows-1251", "cp1251", RUSSIAN, "cp1251"),
        ("KOI8-R", "koi8-r", RUSSIAN, "koi8-r"),
        ("Shift_JIS", "cp932", "名前,都市\n花子,東京\n能,ソ\n", "cp932"),
        ("EUC-JP", "euc-jp", "名前,都市\n花子,東京\n", "euc_jp"),
        ("ISO-2022-JP", "iso2022_jp", "名前,都市\n花子,東京\n", "iso2022-jp"),
        ("gb2312", "gbk", "姓名,城市\n小明,北京\n", "gb18030"),
        ("big5", "big5", "姓名,城市\n小明,台北\n", "big5"),
        ("euc-kr", "cp949", "이름,도시\n김철수,서울\n", "cp949"),
        ("iso-8859-15", "iso8859-15", "name,price\nAda,5€\n", "iso8859-15"),
        ("iso-8859-1", "cp1252", "name,price\nAda,5€\n", "cp1252"),
        ("macintosh", "mac-roman", "name,city\nZoë,Zürich\n", "mac-roman"),
        ("utf-16le", "utf-16-le", RUSSIAN, "utf-16-le"),
        ("utf-16be", "utf-16-be", "name,city\nAda,London\n", "utf-16-be"),
        ("utf-16", "utf-16-be", "name,city\nAda,London\n", "utf-16-be"),
        ('"utf-8"', "utf-8", RUSSIAN, "utf-8"),
    ],
)
def test_a_declared_charset_is_followed(charset: str, codec: str, text: str, shown: str) -> None:
    """By the names that browsers know; the rest of the file can be read from any row on."""
    data = text.encode(codec)
    found = read(data, charset=charset)
    assert [found.header, *found.rows] == [line.split(",") for line in text.splitlines()]
    assert found.opened.encoding_source == "declared"
    assert found.opened.cursor.encoding.replace("_", "-") == shown.replace("_", "-")
    assert found.told == ""
    batches = list(read_batches(io.BytesIO(data), found.opened.cursor, batch_rows=1, chunk_bytes=7))
    for number, batch in enumerate(batches, 1):
        rest = [row for more in read_batches(io.BytesIO(data), batch.cursor) for row in more.rows]
        assert rest == found.rows[number:]
    assert batches[-1].cursor.offset == len(data)


@pytest.mark.parametrize(
    ("charset", "data", "codec", "why"),
    [
        ("utf-8", "name,city\nJosé,Málaga\n".encode("cp1252"), "cp1252", "not UTF-8, as declared"),
        ("us-ascii", "name,city\nZoë,Köln\n".encode(), "utf-8", "as declared"),
        ("utf-16le", b"name,city\nAda,London\n", "utf-8", "not UTF-16, as declared"),
        ("utf-8", "name,city\nAda,London\n".encode("utf-16-le"), "utf-16-le", "not UTF-8, as declared"),
        ("klingon", b"name,city\nAda,London\n", "utf-8", "declared charset is unknown"),
        ("base64", b"name,city\nAda,London\n", "utf-8", "declared charset is unknown"),
        ("utf-7", b"name,city\nAda,London\n", "utf-8", "declared charset is unknown"),
        ("windows-1251", "\ufeffname,city\nZoë,Köln\n".encode(), "utf-8", "byte order mark says utf-8"),
    ],
)
def test_a_declaration_that_the_bytes_contradict_is_told(charset: str, data: bytes, codec: str, why: str) -> None:
    """The file is read as what it is, and the warnings say so."""
    found = read(data, charset=charset)
    assert found.opened.cursor.encoding == codec
    assert why in found.told
    assert "\ufffd" not in str(found.rows)


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("utf-8", RUSSIAN),
        ("cp1251", RUSSIAN),
        ("cp1252", "name;city\nÄda;Köln\n"),
        ("cp1252", "nombre,ciudad\nJosé Muñoz,Málaga\nIñigo,Cádiz\n"),
        ("cp1252", "t,unit\n20,°C\n21,°C\n"),
        ("cp1252", "text\nit’s “x” – y\n"),
        ("cp932", "名前,都市\n山田花子,東京都千代田区\n" * 4),
        ("gb18030", "姓名,城市\n王小明,北京市海淀区\n李华,上海\n" * 4),
        ("cp1253", "όνομα,πόλη\nΓιώργος,Αθήνα\nΜαρία,Πάτρα\n"),
        ("utf-16-le", "name,city\nAda,London\n"),
        ("utf-16-be", "name;city\r\nÄda;Köln\r\n"),
        ("utf-16-le", RUSSIAN),
        ("utf-16-be", "姓名,城市\n王小明,北京市海淀区\n李华,上海\n" * 4),
    ],
)
def test_an_encoding_that_nobody_declares_is_detected(codec: str, text: str) -> None:
    """UTF-16 without a mark, and the 8-bit encodings by the words in them."""
    found = read(text.encode(codec))
    delimiter = found.opened.cursor.delimiter
    assert [found.header, *found.rows] == [line.split(delimiter) for line in text.splitlines()]
    assert found.opened.encoding_source == "guessed"


def test_a_weak_guess_is_told() -> None:
    """Windows-1252 where nothing else is more likely; what is certain warns of nothing."""
    assert "weak guess" in read("name;city\nÄda;Köln\n".encode("cp1252")).told
    assert read("name;city\nÄda;Köln\n").told == ""


def test_a_setting_says_what_files_do_not() -> None:
    """A byte order mark and the part's own charset come before it."""
    assert read(RUSSIAN.encode("koi8-r"), encoding="koi8-r").header == ["имя", "город"]
    assert read(RUSSIAN.encode("cp1251"), charset="cp1251", encoding="koi8-r").header == ["имя", "город"]
    assert read(RUSSIAN.encode("utf-8-sig"), encoding="koi8-r").header == ["имя", "город"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_the_marks_of_a_joined_file_are_dropped(encoding: str) -> None:
    """At the start of rows, also of quoted ones, and twice at the start; inside a field the character stays."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    piece = (mark + '"Ada, A.",London\n').encode(encoding)
    inside = '"a\n\ufeffb",x\n'.encode(encoding.removesuffix("-sig") if encoding != "utf-16" else "utf-16-le")
    head = (mark + mark + "name,city\n").encode(encoding)
    found = read(head + piece + piece + inside)
    assert found.header == ["name", "city"]
    assert found.rows == [["Ada, A.", "London"]] * 2 + [["a\n\ufeffb", "x"]]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("fill", ["\0", "\0" * 5_000, "\x1a", "\x1a" + "\0" * 127])
@pytest.mark.parametrize("last", ["Bob,Paris\n", "Bob,Paris", "Bob,Paris\r\n"])
def test_what_fills_a_file_up_is_left_out_and_told(codec: str, fill: str, last: str) -> None:
    """Zero bytes of a preallocated or copied file, and the end-of-file mark of DOS."""
    mark = "\ufeff" if codec.startswith("utf-16") else "é" * (codec == "cp1252")
    found = read(f"{mark}name,city\nAda,London\n{last}{fill}".encode(codec))
    assert (found.rows, found.rejections) == (TABLE, [])
    assert "which w" in found.told


# -- quotes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ('1,"The" book,x', 2),
        ('"5" disk,b,x', 1),
        ('1,"a \\"b\\" c",x', 2),
        ('1,b,"{"a": 1}"', 3),
        ('1,"ab" "cd",x', 2),
        ('1,"ab" ,x', 2),
        ('1,"a""b"c,x', 2),
        ('1,"a \\"b\\", c",x', 2),
    ],
)
def test_text_behind_a_closing_quote_rejects_its_row_by_its_column(line: str, column: int) -> None:
    """The quotes would vanish; the rows around it are taken, and the cells keep what the row holds."""
    found = read(f"id,text,more\n0,a,b\n{line}\n2,plain,y\n")
    assert found.rows == [["0", "a", "b"], ["2", "plain", "y"]]
    [rejection] = found.rejections
    assert (rejection.row, rejection.column) == (3, column)
    assert "text follows a closing quote" in rejection.reason
    assert any('"' in cell for cell in rejection.cells)


def test_a_row_with_a_quote_too_many_swallows_no_good_row() -> None:
    """Reading goes on with the next line that is a whole row."""
    found = read('id,text,more\n1,"6" pipe 5" long,x\n2,"plain",y\n3,"a""b",z\n')
    assert found.rows == [["2", "plain", "y"], ["3", 'a"b', "z"]]
    assert [(one.row, one.column) for one in found.rejections] == [(2, 2)]


def test_a_rejected_row_of_several_lines_says_how_many() -> None:
    """An open quote may have taken other rows with it."""
    found = read('id,text\n1,"said \\""\n2,"foo"\n3,bar\n')
    [rejection] = found.rejections
    assert found.rows == [["3", "bar"]]
    assert rejection.reason.endswith("; 2 lines were taken for this row")


def test_quotes_inside_a_field_without_quotes_are_kept() -> None:
    """They are characters like others."""
    assert read('a,b\n5" disk,x"y"\n').rows == [['5" disk', 'x"y"']]


# -- rejected rows, mended ---------------------------------------------------------------------------------------------

cells = st.text(st.sampled_from("'=+-@,;|\t\r\n a\u00a0\uff1d1"), max_size=8)


@given(cells)
def test_a_cell_that_was_made_text_comes_back_as_it_was(cell: str) -> None:
    """Whatever it begins with, formulas and quotes of its own."""
    assert unescaped(escaped(cell)) == cell


def test_the_columns_of_a_download_are_left_out_when_it_is_sent_again() -> None:
    """And what was made text for a spreadsheet is again what it was."""
    data = "rejected_row,rejected_column,rejected_reason,name,'=x\n3,,why,Ada,'=1\n4,1,why,'=Bob,2,3\n"
    found = read(data)
    assert (found.header, found.rows) == (["name", "=x"], [["Ada", "=1"]])
    assert [(one.row, one.cells) for one in found.rejections] == [(3, ("=Bob", "2", "3"))]


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ('1,"The" book,x\n', ["1", '"The" book', "x"]),
        ('"a,b","c"d\r\n', ["a,b", '"c"d']),
        ('"a\nb",\n', ["a\nb", ""]),
        ('"open', ['"open']),
        ("", [""]),
    ],
)
def test_a_broken_row_is_cut_where_it_can_be(text: str, cells: list[str]) -> None:
    """What is well-formed is unquoted, what is broken stays as it is written."""
    assert raw_cells(text, ",") == cells


@pytest.mark.parametrize(
    ("line", "is_whole"),
    [("1,2\n", True), ('"1",2', True), ("1\n", False), ('1,"2\n', False), ('1,2"\n', False), ("1,2,3\n", False)],
)
def test_a_whole_row_is_known(line: str, is_whole: bool) -> None:
    """It has the columns of the header and no quote that is not in its place."""
    assert is_whole_row(line, ",", 2) is is_whole
