"""Text and JSON that can be stored, sent and printed: names are validated, free text and JSON are made storable."""

import json
import math
import re
from typing import Any

from asyncbg.errors import OptionsError

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_ONE_LINE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_STRING = re.compile(rb'"[^"]*"')
_LONGEST_NUMBER = 4300
_LONG_NUMBER = re.compile(r"\d{4300}")
"""Python reads no longer ones (``sys.set_int_max_str_digits``)."""


def dump_json(value: Any) -> str:
    """Return one line of JSON in ASCII: null for NaN and infinity, a question mark for each lone surrogate.

    Raises TypeError, ValueError or RecursionError for what has no JSON form.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(without_odd_numbers(value), separators=(",", ":"), allow_nan=False)
    return _whole(text) if "\\ud" in text else text


def without_odd_numbers(value: Any) -> Any:
    """Return a JSON value with null for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {
            str(name) if isinstance(name, float) else name: without_odd_numbers(item) for name, item in value.items()
        }
    return [without_odd_numbers(item) for item in value] if isinstance(value, list | tuple) else value


def load_json(text: str | None, otherwise: Any = None) -> Any:
    """Parse a stored text; return ``otherwise`` where it is no JSON. Never raises."""
    try:
        value = json.loads(text or "null", parse_constant=lambda _: None)
        return json.loads(_whole(text or "null")) if "\\ud" in (text or "").lower() else value
    except (ValueError, RecursionError):
        return otherwise


def require_light(body: bytes, *, most_values: int, most_containers: int) -> None:
    """Raise HeavyJsonError where ``body`` holds more values, or objects and lists, before it is parsed.

    A list costs 60 bytes and more and is tracked by the garbage collector: 10 MB of ``[],`` take 2 s and 270 MB.
    """
    if not _is_heavy(body, most_values, most_containers):
        return
    if _is_heavy(_STRING.sub(b"", body.replace(b"\\\\", b"").replace(b'\\"', b"")), most_values, most_containers):
        raise HeavyJsonError(f"holds more than {most_values:,} values, or {most_containers:,} objects and lists")


class HeavyJsonError(ValueError):
    """A JSON document has too many parts."""


def _is_heavy(text: bytes, most_values: int, most_containers: int) -> bool:
    containers = text.count(b"[") + text.count(b"{")
    return containers > most_containers or containers + text.count(b",") > most_values


def has_long_number(text: str) -> bool:
    """Whether it holds a number with more digits than Python parses."""
    return len(text) >= _LONGEST_NUMBER and _LONG_NUMBER.search(text) is not None


def _whole(text: str) -> str:
    """JSON text without lone surrogates; a pair, such as an emoji's, is one character and stays."""
    unescaped = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    return json.dumps(json.loads(unescaped.encode("utf-8", "replace")), separators=(",", ":"))


def is_storable(text: str) -> bool:
    """Whether it holds no NUL character and no lone surrogate, which SQLite and UTF-8 cannot hold."""
    return _UNSTORABLE.search(text) is None


def is_one_line(text: str) -> bool:
    """Whether it holds no control character, line break or lone surrogate."""
    return _NOT_ONE_LINE.search(text) is None


def require_line(option: str, text: object, *, most: int = 255) -> None:
    """Raise OptionsError unless ``text`` is one line of 1 to ``most`` characters."""
    if not isinstance(text, str):
        raise OptionsError(option, f"should be text, not {type(text).__name__}")
    if not 1 <= len(text) <= most or not is_one_line(text):
        raise OptionsError(option, f"should be one line of 1 to {most} characters, without control characters")


def make_storable(text: str, *, most: int) -> str:
    """``text`` with a question mark for each lone surrogate and a blank for each control character, cut to ``most``."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return _CONTROL.sub(" ", cut).encode("utf-8", "replace").decode()
