"""Failures: the class, message and traceback of an error as text, bounded in size and time, and redacted."""

import asyncio
import concurrent.futures
import reprlib
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType, TracebackType
from typing import Any

from asyncbg.core.job import JobFailure
from asyncbg.core.retry import iter_errors
from asyncbg.privacy import redact

_LONGEST_MESSAGE = 2_000
_CUT_OFF = 500
"""Length removed from the end of truncated text, which may hold part of a secret that no pattern recognizes."""
_LONGEST_LOOKED_AT = _LONGEST_MESSAGE + _CUT_OFF
_MAX_LEAVES = 10
_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)
_LONGEST_NAME = 200


def describe(error: BaseException, clean: Callable[[str], str] = redact) -> JobFailure:
    """Return an error as it is stored on the job: its class and its cleaned, truncated message."""
    return JobFailure(type=class_of(error), message=message_of(error, clean), cause=error)


def message_of(error: BaseException, clean: Callable[[str], str]) -> str:
    """Return the cleaned, truncated message of an error."""
    return bounded(_message(error), clean, _LONGEST_MESSAGE)


def bounded(text: str, clean: Callable[[str], str], most: int) -> str:
    """Return ``text`` truncated and cleaned, in this order, since cleaning takes time for each character."""
    looked_at = text[: most + _CUT_OFF]
    cleaned = clean(looked_at)
    if len(looked_at) < len(text):
        cleaned = cleaned[:-_CUT_OFF]
    return cleaned[:most].encode("utf-8", "replace").decode()


def _message(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error)
    if isinstance(error, _CANCELLED) and not error.args:
        return "something that the task awaited was cancelled; the job was not"
    return _text(error)


def _of_group(group: BaseExceptionGroup[BaseException]) -> str:
    """Return the message of a group, followed by those of its errors."""
    leaves = (part for part in iter_errors(group) if not isinstance(part, BaseExceptionGroup))
    found = list(islice(leaves, _MAX_LEAVES + 1))
    described = [f"{class_of(leaf)}: {_text(leaf)[:_LONGEST_MESSAGE]}" for leaf in found[:_MAX_LEAVES]]
    return f"{_text(group)[:200]}: {'; '.join(described)}{'; …' if len(found) > _MAX_LEAVES else ''}"


def _text(error: BaseException) -> str:
    """Return the message. ``str(error)`` would convert all arguments of the error, of any size."""
    try:
        makes = type(error).__str__
        if makes is BaseException.__str__:
            return _of_arguments(error.args)
        if makes is KeyError.__str__ and len(error.args) == 1:
            only = error.args[0]
            return repr(only[:_LONGEST_LOOKED_AT]) if type(only) is str else _short(only)
        return str(error)
    except BaseException:  # noqa: BLE001 - the error's own ``__str__`` may raise anything
        return "its message cannot be read"


def _of_arguments(args: tuple[object, ...]) -> str:
    if len(args) != 1:
        return _short(args) if args else ""
    only = args[0]
    if type(only) is str:
        return only[: _LONGEST_LOOKED_AT + 1]
    return _short(only) if isinstance(only, _LARGE) else str(only)


_LARGE = (list, tuple, dict, set, frozenset, bytes, bytearray, int)


class _Shortener(reprlib.Repr):
    """The repr of a value of any size. Long parts are omitted as a whole: a truncated part could not be redacted."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 30

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= _LONGEST_PART else f"<{len(x)} characters>"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= _LONGEST_PART else f"<{len(x)} bytes>"

    def repr_bytearray(self, x: bytearray, level: int) -> str:
        return self.repr_bytes(bytes(x[: _LONGEST_PART + 1]), level)

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _LONGEST_PART else f"<a number of {x.bit_length()} bits>"

    def repr_instance(self, x: object, level: int) -> str:
        text = repr(x)
        return text if len(text) <= _LONGEST_PART else f"<{type(x).__name__}>"


_LONGEST_PART = 500
_short = _Shortener().repr


def class_of(error: BaseException) -> str:
    """Return the name of an error's class, bypassing its metaclass."""
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name[:_LONGEST_NAME].encode("utf-8", "replace").decode()


_LONGEST = 16_384
_MAX_ERRORS = 10
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
    """Return the traceback text of an error, its causes and its group, as Python prints them.

    ``stack`` is put before an error that was not raised. Without ``clean`` no message and no note is included: free
    text may be personal in ways that no pattern recognizes.

    Beyond ten errors or 16 KiB of text, errors are omitted as a whole, the most distant cause first.
    """
    kept: list[str] = []
    room = _LONGEST
    for text in islice(_sections(error, clean), _MAX_ERRORS):
        room -= len(text)
        if kept and room < 0:
            break
        kept.append(text)
    inner = [text for text in kept if text.startswith(_INNER)]
    return "".join([stack or "", *reversed([text for text in kept if text not in inner]), *inner])


def stack_text(task: asyncio.Task[Any]) -> str | None:
    """Return where a coroutine waits now: its frames, the innermost last, without those of the engine."""
    frames: list[tuple[FrameType, int]] = []
    waiting: Any = task.get_coro()
    while waiting is not None and len(frames) < _LONGEST_WAIT:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None and (frames or frame.f_globals.get("__name__") not in _AROUND):
            frames.append((frame, frame.f_lineno))
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return _HEAD + "".join(traceback.StackSummary.extract(iter(frames)).format()) if frames else None


_LONGEST_WAIT = 30


def _sections(error: BaseException, clean: Callable[[str], str] | None) -> Iterator[str]:
    """Yield the text of the error, of the errors in its group, then of its causes, each with its separator."""
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
    """Return the first and last frames of the task, with their source lines."""
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
