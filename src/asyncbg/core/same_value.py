"""Whether two values are the same: of the same types all the way down, not merely equal."""

import marshal  # nosemgrep: no-pickle
import math
import operator
from collections.abc import Callable, Iterable, Set
from datetime import datetime, timezone, tzinfo
from typing import Any

from pydantic import BaseModel
from pydantic_core import TzInfo

_BY_VALUE = 2
"""The version of marshal's format that writes equal values alike, whether an object occurs once or several times.

marshal only writes here, to compare two values; nothing is ever read back."""


def is_same(one: Any, other: Any) -> bool:
    """Whether the two are interchangeable: equal in type, order and the state of objects.

    ``1`` is not ``True``, ``1.0`` not ``1``, an enumeration's text not its member. Objects are compared by what pickle
    would take of them, never by their own ``__eq__``. Raises where an object cannot be taken apart.
    """
    return _have_same_bytes(one, other) or _is_same(one, other)


def _have_same_bytes(one: Any, other: Any) -> bool:
    """The common case in C: only the very builtin types have such a form."""
    try:
        return marshal.dumps(one, _BY_VALUE) == marshal.dumps(other, _BY_VALUE)
    except ValueError:
        return False


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, timezone | TzInfo) and isinstance(other, timezone | TzInfo):
        return _is_same_offset(one, other)
    if type(one) is not type(other) or isinstance(one, type):
        return False
    if isinstance(one, BaseModel):
        return _is_same_model(one, other)
    return _COMPARED.get(type(one), _is_same_object)(one, other)


def _is_same_float(one: float, other: float) -> bool:
    are_equal = one == other and math.copysign(1, one) == math.copysign(1, other)
    return are_equal or (math.isnan(one) and math.isnan(other))


def _is_same_datetime(one: datetime, other: datetime) -> bool:
    are_equal = one.replace(tzinfo=None) == other.replace(tzinfo=None) and one.fold == other.fold
    return are_equal and _is_same(one.tzinfo, other.tzinfo)


def _is_same_dict(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return _are_same(one.items(), other.items())


def _is_same_set(one: Set[Any], other: Set[Any]) -> bool:
    there = {item: item for item in other}
    return len(one) == len(other) and all(item in there and _is_same(item, there[item]) for item in one)


def _is_same_model(one: BaseModel, other: BaseModel) -> bool:
    """By its fields, which of them were set, and what it holds besides; as pickle would, in a tenth of the time."""
    return (
        one.__pydantic_fields_set__ == other.__pydantic_fields_set__
        and _is_same(one.__dict__, other.__dict__)
        and _is_same(one.__pydantic_extra__, other.__pydantic_extra__)
        and _is_same(one.__pydantic_private__, other.__pydantic_private__)
    )


def _are_same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    some, others = list(some), list(others)
    return len(some) == len(others) and all(map(_is_same, some, others))


def _is_same_offset(one: tzinfo, other: tzinfo) -> bool:
    """Whether two fixed offsets are the same: pydantic's zone equals the standard library's, unless it is named."""
    if isinstance(one, timezone) and isinstance(other, timezone):
        return repr(one) == repr(other)
    return one.utcoffset(None) == other.utcoffset(None)


def _is_same_object(one: Any, other: Any) -> bool:
    """By class, arguments, state and items, as pickle takes an object apart."""
    taken, others = one.__reduce_ex__(4), other.__reduce_ex__(4)
    if isinstance(taken, str) or isinstance(others, str):
        return False  # the name of a global, and they are not one object
    parts = [list(part) if at in (3, 4) and part is not None else part for at, part in enumerate(taken)]
    other_parts = [list(part) if at in (3, 4) and part is not None else part for at, part in enumerate(others)]
    return _are_same(parts, other_parts)


_COMPARED: dict[type, Callable[[Any, Any], bool]] = {
    **dict.fromkeys((str, int, bool, bytes, type(None), complex), operator.eq),
    **dict.fromkeys((list, tuple), _are_same),
    **dict.fromkeys((set, frozenset), _is_same_set),
    dict: _is_same_dict,
    float: _is_same_float,
    datetime: _is_same_datetime,
}
