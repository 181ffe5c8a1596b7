"""Reads the bytes of an event stream into blocks, as WHATWG HTML section 9.2.6 says, and keeps what it would ignore."""

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

_LINE_END = re.compile("\r\n|\r|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One block of a stream. ``id`` and ``retry`` are None where the block has none; ``unknown`` lines mean nothing."""

    event: str = ""
    data: str = ""
    id: str | None = None
    retry: str | None = None
    comments: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def is_event(self) -> bool:
        """Whether an EventSource dispatches it: a block without data is none."""
        return bool(self.data)

    def json(self) -> Any:
        """The data, read as JSON. Raises ValueError where it is none."""
        return json.loads(self.data)


class FrameParser:
    """Takes a stream in pieces of any size; ``feed`` gives the blocks that are whole by now."""

    def __init__(self) -> None:
        """At the beginning of a stream."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._lines: list[str] = []
        self._is_at_start = True
        self._is_after_cr = False

    @property
    def has_rest(self) -> bool:
        """Whether there is a block that no blank line has ended: a client drops it when the stream ends."""
        return bool(self._text or self._lines)

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
                self._lines.append(line)
            elif self._lines:
                found.append(_frame(self._lines))
                self._lines = []
        return found


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
            case "event" | "id" | "retry":
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
    )
