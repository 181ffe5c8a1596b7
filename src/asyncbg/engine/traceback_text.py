"""Where a failed attempt was, as text: bounded, cleaned, without the frames of the engine around the task."""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType, TracebackType
from typing import Any

from asyncbg.core.retry import iter_errors
from asyncbg.engine.failure import class_of, message_of

_LONGEST = 16_384
_MOST_ERRORS = 10
_FIRST_FRAMES, _LAST_FRAMES = 3, 30
_AROUND = frozenset(
    {
        "asyncbg.engine.worker",
        "asyncbg.engine.executor",
        "asyncbg.engine.dependencies",
        "asyncbg.engine.threads",
        "contextlib",
    }
)
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"
_INNER = "\nIn the group above:\n\n"


def traceback_text(error: BaseException, clean: Callable[[str], str] | None, stack: str | None = None) -> str:
    """The error, what caused it and what is in it where it is a group, as Python prints them.

    One that was not raised, but found, comes with a ``stack``, which stands before it. Without ``clean`` no message and
    no note is told: what somebody put into one in their own words is known for personal by no pattern.

    Errors are left out as a whole, the remotest first, once there are more than ten or 16 KiB of text.
    """
    kept: list[str] = []
    room = _LONGEST
    for text in islice(_told(error, clean), _MOST_ERRORS):
        room -= len(text)
        if kept and room < 0:
            break
        kept.append(text)
    inner = [text for text in kept if text.startswith(_INNER)]
    return "".join([stack or "", *reversed([text for text in kept if text not in inner]), *inner])


def stack_text(task: asyncio.Task[Any]) -> str | None:
    """Where a coroutine waits now: its frames, the innermost last, without those of the engine."""
    frames: list[tuple[FrameType, int]] = []
    waiting: Any = task.get_coro()
    while waiting is not None and len(frames) < _LONGEST_WAIT:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None and (frames or frame.f_globals.get("__name__") not in _AROUND):
            frames.append((frame, frame.f_lineno))
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return _HEAD + "".join(traceback.StackSummary.extract(iter(frames)).format()) if frames else None


_LONGEST_WAIT = 30


def _told(error: BaseException, clean: Callable[[str], str] | None) -> Iterator[str]:
    """The error, those in its group, then its causes, each with what joins it to the one that follows it."""
    yield _one(error, clean)
    if isinstance(error, BaseExceptionGroup):
        for leaf in iter_errors(error):
            if not isinstance(leaf, BaseExceptionGroup):
                yield _INNER + _one(leaf, clean)
    seen = {id(error)}
    while True:
        is_cause = error.__cause__ is not None
        below = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if below is None or id(below) in seen:
            return
        seen.add(id(below))
        yield _one(below, clean) + (_CAUSE if is_cause else _CONTEXT)
        error = below


def _one(error: BaseException, clean: Callable[[str], str] | None) -> str:
    if clean is None:
        return f"{_frames(error.__traceback__)}{class_of(error)}\n"
    notes = [f"{note[:500]}\n" for note in getattr(error, "__notes__", ())[:10] if isinstance(note, str)]
    message = message_of(error, clean)
    last = f"{class_of(error)}: {message}\n" if message else f"{class_of(error)}\n"
    return clean(_frames(error.__traceback__)) + last + clean("".join(notes))


def _frames(tb: TracebackType | None) -> str:
    """The first frames of the task and the last ones, with their lines of source."""
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_globals.get("__name__") in _AROUND:
        tb = tb.tb_next
    found = list(traceback.walk_tb(tb))
    if not found:
        return ""
    left_out = len(found) - _FIRST_FRAMES - _LAST_FRAMES
    if left_out <= 0:
        return _HEAD + "".join(traceback.StackSummary.extract(iter(found)).format())
    first, last = found[:_FIRST_FRAMES], found[-_LAST_FRAMES:]
    shown = ["".join(traceback.StackSummary.extract(iter(some)).format()) for some in (first, last)]
    return f"{_HEAD}{shown[0]}  … {left_out} frames\n{shown[1]}"


_HEAD = "Traceback (most recent call last):\n"
