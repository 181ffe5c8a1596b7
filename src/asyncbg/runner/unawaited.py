"""Finds the coroutines that a run made and never awaited: work that was to be done, and was not."""

import gc
import warnings
from contextvars import ContextVar, Token
from typing import Any

from asyncbg.errors import UnawaitedError

_WARN = "_warn_unawaited_coroutine"
_found: ContextVar[list[str] | None] = ContextVar("asyncbg_unawaited", default=None)


class unawaited:  # noqa: N801 - a context manager, read as a word
    """Raise UnawaitedError for the coroutines that the block, and the threads it waits for, made and dropped.

    An error of the block itself goes through, with a note of them.
    """

    __slots__ = ("_names", "_task", "_token")

    def __init__(self, task: str) -> None:
        """Watch a run of ``task``."""
        self._task = task

    def __enter__(self) -> None:
        """Begin to collect."""
        self._names: list[str] = []
        self._token: Token[list[str] | None] = _found.set(self._names)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Tell what was collected."""
        _found.reset(self._token)
        if self._names and error is None:
            raise UnawaitedError(self._task, self._names)
        if self._names and error is not None:
            error.add_note(f"never awaited: {', '.join(self._names)}")


def notice_unawaited() -> None:
    """Let Python's own notice of a dropped coroutine be taken down where a run collects them.

    CPython calls a function of the warnings module, by name, when it frees such a coroutine. A filter of warnings
    would not do: each line is warned of once. Where no such function is, Python's warning is all there is.
    """
    warn = getattr(warnings, _WARN, None)
    if warn is None or getattr(warn, "is_asyncbg", False):
        return

    collecting = _Collecting()
    gc.callbacks.append(collecting)

    def take_down(coroutine: Any) -> None:
        names = _found.get()
        if names is None or collecting.is_on:  # what is freed then may be anybody's
            warn(coroutine)
        else:
            names.append(coroutine.__qualname__)

    take_down.is_asyncbg = True  # type: ignore[attr-defined]
    setattr(warnings, _WARN, take_down)


class _Collecting:
    """Whether the garbage collector frees something now."""

    is_on = False

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        self.is_on = phase == "start"
