"""Reads the bytes of an event stream into blocks, as WHATWG HTML section 9.2.6 says, and keeps what it would ignore."""

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

_LINE_END = re.compile("\r\n|\r|\n")


_MOST_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One block of a stream. ``id`` and ``retry`` are None where it has none that counts.

    ``unknown`` lines mean nothing to an EventSource: fields it does not know, a ``retry`` that is not ASCII digits, an
    ``id`` with a NUL.
    """

    event: str = ""
    data: str = ""
    id: str | None = None
    retry: str | None = None
    comments: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    is_event: bool = False
    """Whether an EventSource dispatches it: one line of data makes it an event, also an empty one."""

    def json(self) -> Any:
        """The data, read as JSON. Raises ValueError where it is none."""
        return json.loads(self.data)


class FrameParser:
    """Takes a stream in pieces of any size; ``feed`` gives the blocks that are whole by now."""

    def __init__(self) -> None:
        """At the beginning of a stream."""
        self.retry_ms: int | None = None
        """Counts from its line on, whether its block becomes whole or not."""
        self.comments = 0
        """How many lines were comments: they need no blank line behind them."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._lines: list[str] = []
        self._is_at_start = True
        self._is_after_cr = False

    @property
    def has_rest(self) -> bool:
        """Whether there is an event that no blank line has ended: a client drops it when the stream ends."""
        return bool(self._text) or any(line.partition(":")[0] in {"data", "event"} for line in self._lines)

    def feed(self, chunk: bytes) -> list[Frame]:
        """Read on."""
        text = self._decoder.decode(chunk)
        if text and self._is_at_start:
            text, self._is_at_start = text.removeprefix("\ufeff"), False
        if text and self._is_after_cr:
            text, self._is_after_cr = text.removeprefix("\n"), False
        self._is_after_cr = self._is_after_cr or text.endswith("\r")
        *lines, self._text = _LINE_END.split(self._text + text)
        found = []
        for line in lines:
            if line:
                self._take(line)
            elif self._lines:
                found.append(_frame(self._lines))
                self._lines = []
        return found

    def _take(self, line: str) -> None:
        self._lines.append(line)
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        self.comments += not name
        if name == "retry" and _is_time(value):
            self.retry_ms = int(value) if len(value) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _frame(lines: list[str]) -> Frame:
    data: list[str] = []
    comments: list[str] = []
    unknown: list[str] = []
    single: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                comments.append(value)
            case "data":
                data.append(value)
            case "event":
                single[name] = value
            case "id" if "\0" not in value:
                single[name] = value
            case "retry" if _is_time(value):
                single[name] = value
            case _:
                unknown.append(line)
    return Frame(
        event=single.get("event", ""),
        data="\n".join(data),
        id=single.get("id"),
        retry=single.get("retry"),
        comments=tuple(comments),
        unknown=tuple(unknown),
        is_event=bool(data),
    )


def _is_time(value: str) -> bool:
    return value.isascii() and value.isdigit()
