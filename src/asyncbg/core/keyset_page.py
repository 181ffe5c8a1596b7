"""Keyset pagination: newest first, with a cursor that names the last item of the page."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from asyncbg.errors import BadCursorError

T = TypeVar("T")

_NEWEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class KeysetPage(Generic[T]):
    """Some items, and the cursor of the page after them; None on the last page."""

    items: list[T]
    next: str | None


def parse_cursor(cursor: str | None) -> int:
    """Return the position that the page after ``cursor`` begins before. Raises BadCursorError."""
    if cursor is None:
        return _NEWEST
    if cursor.isascii() and cursor.isdecimal() and len(cursor) < len(str(_NEWEST)):
        return int(cursor)
    raise BadCursorError


def build_page(items: list[tuple[int, T]], limit: int) -> KeysetPage[T]:
    """Return a page of at most ``limit`` items from ``limit + 1`` items with their positions, newest first."""
    shown = items[:limit]
    return KeysetPage([item for _, item in shown], str(shown[-1][0]) if len(items) > limit else None)
