"""Errors that affect one item only: logged with their traceback and counted by component."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("asyncbg")

_MOST_SHOWN = 10
_MOST_FRAMES = 50


def ends_task(error: BaseException) -> bool:
    """Whether ``error`` ends the current asyncio task, not only the item it handles.

    A CancelledError does where this task was cancelled; one from a future that another task cancelled is an ordinary
    error. GeneratorExit does where no task runs: the coroutine is being closed.
    """
    if not isinstance(error, asyncio.CancelledError | GeneratorExit):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True
    return task is None or (isinstance(error, asyncio.CancelledError) and task.cancelling() > 0)


def capture(function: Callable[..., T], *args: Any) -> tuple[T | None, BaseException | None]:
    """Call a function in a thread and return its result or its exception as a value.

    A future cannot carry StopIteration, and GeneratorExit out of a future closes every coroutine that awaits it.
    """
    try:
        return function(*args), None
    except BaseException as error:  # noqa: BLE001 - the caller decides
        return None, error


class ErrorLog:
    """A log and counter of errors by component; :meth:`add` never raises, whatever the log handlers do."""

    def __init__(self) -> None:
        """Start at zero."""
        self.counts: Counter[str] = Counter()
        self._failing: dict[str, type[BaseException]] = {}

    def add(self, part: str, error: BaseException, message: str, *args: object, is_ours: bool = False) -> None:
        """Log ``message`` with the traceback of ``error``, and count it under ``part``.

        The traceback of a user's error names classes and lines only, since a message may quote personal data; that of
        our own code (``is_ours``) is logged as it is.
        """
        self.counts[part] += 1
        try:
            logger.error(message, *args, exc_info=error if is_ours else without_messages(error))
        except Exception:  # noqa: BLE001 - an application's log handler or filter failed; the counter has it
            self.counts["logging"] += 1

    def add_once(self, part: str, error: BaseException, message: str, *args: object, is_ours: bool = False) -> None:
        """Log as :meth:`add` for work that is repeated: one kind of error is logged once until :meth:`recovered`."""
        if self._failing.get(part) is type(error):
            self.counts[part] += 1
            return
        self._failing[part] = type(error)
        self.add(part, error, message, *args, is_ours=is_ours)

    def recovered(self, part: str) -> None:
        """Note that the component works again."""
        self._failing.pop(part, None)


def without_messages(error: BaseException) -> BaseException:
    """Return a copy of ``error`` for the log: its class names, frames, causes and inner errors, without messages."""
    return _copy(error, [_MOST_SHOWN])


def _copy(error: BaseException, left: list[int]) -> BaseException:
    left[0] -= 1
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    shown = [_copy(one, left) for one in inner if left[0] > 0]
    copy: BaseException = _named(error, BaseExceptionGroup)("", shown) if shown else _named(error, BaseException)()
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and left[0] > 0:
        copy.__cause__ = _copy(cause, left)
    return copy.with_traceback(_last_frames(error))


def _named(error: BaseException, base: type[BaseException]) -> type[BaseException]:
    return type(type(error).__name__, (base,), {"__module__": type(error).__module__, "__str__": lambda _: ""})


def _last_frames(error: BaseException) -> TracebackType | None:
    """Return the innermost frames, which are enough for an endless recursion."""
    start = found = error.__traceback__
    depth = 0
    while found is not None:
        depth, found = depth + 1, found.tb_next
        if depth > _MOST_FRAMES and start is not None:
            start = start.tb_next
    return start
