"""Text that can be stored, sent and printed: names are validated, free text is made storable."""

import re

from asyncbg.errors import OptionsError

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_ONE_LINE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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
