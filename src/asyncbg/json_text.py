"""JSON as every reader takes it, without NaN and halves of characters; and stored text, read whatever is in it."""

import json
import math
import re
from typing import Any

_LONGEST_NUMBER = 4300
_LONG_NUMBER = re.compile(r"\d{4300}")
"""Python reads no longer ones (``sys.set_int_max_str_digits``)."""


def dump_json(value: Any) -> str:
    """One line of JSON in ASCII: null for NaN and infinity, a question mark for each lone surrogate.

    Raises TypeError, ValueError or RecursionError for what has no JSON form.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(without_odd_numbers(value), separators=(",", ":"), allow_nan=False)
    return _whole(text) if "\\ud" in text else text


def without_odd_numbers(value: Any) -> Any:
    """A JSON value with null for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {
            str(name) if isinstance(name, float) else name: without_odd_numbers(item) for name, item in value.items()
        }
    return [without_odd_numbers(item) for item in value] if isinstance(value, list | tuple) else value


def load_json(text: str | None, otherwise: Any = None) -> Any:
    """What a stored text holds; ``otherwise`` where it is no JSON. Never raises, whoever has written it."""
    try:
        value = json.loads(text or "null", parse_constant=lambda _: None)
        return json.loads(_whole(text or "null")) if "\\ud" in (text or "").lower() else value
    except (ValueError, RecursionError):
        return otherwise


def has_long_number(text: str) -> bool:
    """Whether it holds a number of more digits than Python reads."""
    return len(text) >= _LONGEST_NUMBER and _LONG_NUMBER.search(text) is not None


def _whole(text: str) -> str:
    """JSON text without lone surrogates; a pair, such as an emoji's, is one character and stays."""
    unescaped = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    return json.dumps(json.loads(unescaped.encode("utf-8", "replace")), separators=(",", ":"))
