"""Finds the coroutines that a run made and never awaited: work that was to be done, and was not."""

import gc
import warnings
from contextvars import ContextVar, Token
from typing import Any

_WARN = "_warn_unawaited_coroutine"
_found: ContextVar[list[str] | None] = ContextVar("asyncbg_unawaited", default=None)


def collect_unawaited() -> tuple[list[str], Token[list[str] | None]]:
    """Collect from now on the names of coroutines that are dropped, also in threads that the caller waits for."""
    names: list[str] = []
    return names, _found.set(names)


def stop_collecting(token: Token[list[str] | None]) -> None:
    """Collect no more."""
    _found.reset(token)


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
