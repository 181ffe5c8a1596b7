"""One record, one line: what the JSON formatter writes and the filter leaves."""

import json
import logging
import sys

from asyncbg.privacy import RedactingFilter
from asyncbg.service.logging_config import JsonFormatter, logging_config
from asyncbg.settings import Settings


def record(msg: str, *args: object, **extra: object) -> logging.LogRecord:
    """A record of the logger ``test``, with the exception that is handled now."""
    info = sys.exc_info() if sys.exc_info()[0] else None
    return logging.getLogger("test").makeRecord("test", logging.WARNING, "f", 1, msg, args, info, "fn", extra or None)


def written(entry: logging.LogRecord, *, mask: bool = True) -> str:
    """The line of a record that passed the filter."""
    RedactingFilter(mask=mask).filter(entry)
    return JsonFormatter().format(entry)


def test_a_record_is_one_line_of_ascii_json() -> None:
    """Line breaks, separators and letters of any script are escaped."""
    line = written(record("a\nb\u2028ü %s", "x\ry"))

    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["level"] == "warning"


def test_an_exception_is_a_member() -> None:
    """Its traceback is text in the same line, redacted."""
    try:
        int("for ada.canary7f3a@canary7f3a.example")
    except ValueError:
        line = written(record("failed"))

    assert "ValueError" in json.loads(line)["exception"]
    assert "ada@" not in line
    assert line.isprintable()


def test_what_extra_adds_is_kept_apart() -> None:
    """It can take no member's place, and an object in it is shown by its type only."""
    line = json.loads(written(record("x", level="fake", who="ada.canary7f3a@canary7f3a.example", it=object())))

    assert line["level"] == "warning"
    assert line["extra"]["level"] == "fake"
    assert line["extra"]["it"] == "<object>"
    assert line["extra"]["who"].startswith("[email:")


def test_without_masking_nothing_is_redacted_and_all_is_escaped() -> None:
    """The filter stays on the handlers."""
    entry = record("to %s\nINFO: forged", "ada.canary7f3a@canary7f3a.example")
    RedactingFilter(mask=False).filter(entry)

    assert entry.getMessage() == "to ada.canary7f3a@canary7f3a.example\\nINFO: forged"


def test_loggers_of_others_pass_the_filter_too() -> None:
    """What asyncio or aiohttp log goes to the root logger, which has a handler of ours."""
    config = logging_config(Settings())

    assert config["root"]["handlers"] == ["default"]
    assert all(handler["filters"] == ["redact"] for handler in config["handlers"].values())
