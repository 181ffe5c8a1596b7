"""Validation errors without the input: pydantic's errors, cleaned."""

import re
from collections.abc import Mapping
from typing import Any

from asyncbg.errors import ErrorItem
from asyncbg.privacy import redact

# A name in a location: a field, a misspelt field, or a branch of a union such as list[str].
_NAME = re.compile(r"[A-Za-z_][\w.,$()\[\]-]{0,99}", re.ASCII)
# What pydantic says of these types quotes the input after the comma; the sentence before it says enough.
_QUOTES_INPUT = re.compile(r"(?:date|time|datetime|date_from_datetime|datetime_from_date|time_delta|uuid|url)_parsing")
_FREE_TEXT = frozenset({"value_error", "assertion_error"})
_BLAND = {
    "union_tag_invalid": "Input is of no known kind",
    "json_invalid": "Input should be valid JSON",
    "url_syntax_violation": "Input should be a valid URL",
}


def clean_error(item: Mapping[str, Any]) -> ErrorItem:
    """Return one error without the input, its context, or a message that quotes it."""
    kind, msg, given = str(item["type"]), str(item["msg"]), item.get("input")
    if kind in _BLAND:
        msg = _BLAND[kind]
    elif _QUOTES_INPUT.fullmatch(kind):
        msg = msg.partition(",")[0]
    elif "is not a valid email address" in msg:
        msg = "value is not a valid email address"
    elif kind in _FREE_TEXT and _is_quoted(given, msg):
        msg = "Input is not valid"
    loc = [part if isinstance(part, int) else _name(str(part)) for part in item["loc"]]
    return ErrorItem(loc=loc, msg=redact(msg), type=kind)


def _name(part: str) -> str:
    """Return a name in a location; ``?`` for a caller's text, such as the key of an unknown field."""
    return redact(part) if _NAME.fullmatch(part) else "?"


def _is_quoted(given: Any, msg: str) -> bool:
    """Whether the message of a user's validator repeats its input or a part of it."""
    if isinstance(given, Mapping):
        return any(_is_quoted(part, msg) for pair in given.items() for part in pair)
    if isinstance(given, list | tuple | set | frozenset):
        return any(_is_quoted(part, msg) for part in given)
    text = str(given).strip() if isinstance(given, str | int | float) and not isinstance(given, bool) else ""
    return bool(text) and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", msg) is not None
