"""Parser of event streams (WHATWG HTML, section 9.2.6) that also keeps what an EventSource ignores."""

import json
from dataclasses import dataclass
from typing import Any

from asyncbg.client.sse_parser import LineReader

_MOST_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One block of a stream. ``id`` and ``retry`` are None without a valid field.

    ``unknown`` holds the lines that an EventSource ignores: unknown fields, a ``retry`` that is not ASCII digits, an
    ``id`` with a NUL.
    """

    event: str = ""
    data: str = ""
    id: str | None = None
    retry: str | None = None
    comments: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    is_event: bool = False
    """Whether an EventSource dispatches the block: it has at least one data line, possibly empty."""

    def json(self) -> Any:
        """Parse the data as JSON. Raises ValueError."""
        return json.loads(self.data)


class FrameParser:
    """Incremental parser of a stream; ``feed`` returns the blocks that a chunk completes."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        """The last valid retry; it applies from its line on, before the block is complete."""
        self.comments = 0
        """The number of comment lines, which need no blank line after them."""
        self._reader = LineReader()
        self._lines: list[str] = []

    @property
    def has_rest(self) -> bool:
        """Whether an event is incomplete: clients drop it when the stream ends."""
        return self._reader.partial_size > 0 or any(line.partition(":")[0] in {"data", "event"} for line in self._lines)

    def feed(self, chunk: bytes) -> list[Frame]:
        """Parse a chunk. Return the completed blocks."""
        found = []
        for raw in self._reader.feed(chunk):
            line = raw.decode("utf-8", "replace")
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
