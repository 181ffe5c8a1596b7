"""The numbers in docs/limits.md are those of the code."""

from pathlib import Path

import pytest

from asyncbg.service.inputs import MAX_TEXT_BODY_BYTES, MAX_TEXT_BYTES
from asyncbg.service.integrations.csv_columns import MAX_COLUMNS, MAX_FIELD_CHARS
from asyncbg.service.integrations.csv_reader import MAX_ROW_BYTES
from asyncbg.service.integrations.imports import MAX_KEPT_REJECTIONS, MAX_REJECTIONS
from asyncbg.service.integrations.mail_message import MAX_BODY_BYTES as MAX_MAIL_BYTES
from asyncbg.service.integrations.mail_message import MAX_RECIPIENTS, MAX_SUBJECT_LENGTH
from asyncbg.service.multipart import MAX_HEADER_LINE_BYTES, MAX_HEADERS
from asyncbg.service.upload import OVERHEAD_BYTES
from asyncbg.web.problem_route import MAX_BODY_BYTES

DOCS = Path(__file__).parents[2] / "docs"
MIB = 1024 * 1024


@pytest.mark.parametrize(
    "line",
    [
        f"| all but these | {MAX_BODY_BYTES // MIB} MiB |",
        f"| {MAX_TEXT_BODY_BYTES // MIB} MiB: a text of {MAX_TEXT_BYTES // MIB} MiB,",
        f"`ASYNCBG_UPLOAD__MAX_BYTES` and {OVERHEAD_BYTES // 1024} KiB",
        f"has at most {MAX_HEADER_LINE_BYTES:,} bytes",
        f"a part at most {MAX_HEADERS} of them",
        f"| columns | {MAX_COLUMNS:,} |",
        f"| a row | {MAX_ROW_BYTES:,} bytes |",
        f"| a field | {MAX_FIELD_CHARS:,} characters |",
        f"| rejections that an import shows | {MAX_REJECTIONS:,} |",
        f"| rejections that are kept | {MAX_KEPT_REJECTIONS:,} |",
    ],
)
def test_each_limit_is_the_codes(line: str) -> None:
    """The page says it in these words."""
    assert line in (DOCS / "limits.md").read_text("utf-8")


@pytest.mark.parametrize(
    "words",
    [
        f"up to {MAX_RECIPIENTS} from Python",
        f"subject of up to {MAX_SUBJECT_LENGTH} characters",
        f"body of up to {MAX_MAIL_BYTES // MIB} MiB",
    ],
)
def test_each_limit_of_mail_is_the_codes(words: str) -> None:
    """They stand with what leaves the service."""
    assert words in (DOCS / "outbound.md").read_text("utf-8")
