"""What counts as the same value: types, order and everything that an object holds."""

import decimal
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone
from enum import IntEnum, IntFlag, StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr
from pydantic_core import TzInfo

from asyncbg.core.same_value import is_same


class Colour(StrEnum):
    """An enumeration of texts."""

    RED = "red"


class Level(IntEnum):
    """An enumeration of numbers."""

    LOW = 1


class Right(IntFlag):
    """Flags that add up."""

    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    """A named tuple."""

    left: int
    right: int


@dataclass
class Point:
    """A dataclass."""

    x: float


class Place(Point):
    """Of another class, and equal in all it holds."""


class Patch(BaseModel):
    """A model that may have more than it declares."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    _seen: int = PrivateAttr(default=0)


class Easy(BaseModel):
    """A model that thinks all its like are equal."""

    number: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Easy)

    __hash__ = None  # type: ignore[assignment]  # as Python has it for a class with its own ==


def seen(times: int) -> Patch:
    """A model with a private attribute."""
    patch = Patch()
    patch._seen = times
    return patch


BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)
OTHERS: list[tuple[Any, Any]] = [
    (1, True),
    (1, 1.0),
    (0.0, -0.0),
    ("red", Colour.RED),
    (1, Level.LOW),
    (1, Right.READ),
    ([1, 2], (1, 2)),
    ((1, 2), Pair(1, 2)),
    ({1, 2}, frozenset({1, 2})),
    ({1}, {True}),
    ({1}, {1.0}),
    ({"a": 1}, OrderedDict(a=1)),
    ({"a": 1}, Counter("a")),
    ({"a": 1}, defaultdict(int, a=1)),
    (defaultdict(int, a=1), defaultdict(list, a=1)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1: "a"}, {True: "a"}),
    (deque([1], 3), deque([1], 4)),
    (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    (Path("a"), PurePosixPath("a")),
    (Point(1), Place(1)),
    (Point(1), Point(1.0)),
    (Patch(), Patch(name=None)),
    (Patch(), seen(1)),
    (Patch(), Patch.model_validate({"more": 1})),
    (Easy(number=1), Easy(number=2)),
    (NOON, NOON.astimezone(BERLIN)),
    (NOON.astimezone(BERLIN), NOON.astimezone(timezone(timedelta(hours=1)))),
    (timezone(timedelta(hours=1)), timezone(timedelta(hours=1), "CET")),
    (datetime(2026, 10, 25, 2, 30), datetime(2026, 10, 25, 2, 30, fold=1)),  # noqa: DTZ001 - the point
    (time(2), time(2, fold=1)),
    ("a", "b"),
    (None, False),
    (len, print),
]


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: [it], lambda it: {"a": (it,)}, Point])
@pytest.mark.parametrize("pair", OTHERS, ids=map(str, range(len(OTHERS))))
def test_another_value_is_not_the_same_however_deep(pair: tuple[Any, Any], wrap: Any) -> None:
    """By itself, in a list, in a dictionary, in an object; from either side."""
    one, other = pair
    assert not is_same(wrap(one), wrap(other))
    assert not is_same(wrap(other), wrap(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (float("nan"), float("nan")),
        ({"a": [1, 1.5, None, "x", b"y"]}, {"a": [1, 1.5, None, "x", b"y"]}),
        ({1, 2, 300}, {300, 2, 1}),
        ({Colour.RED: Pair(1, 2)}, {Colour.RED: Pair(1, 2)}),
        (Point(1.5), Point(1.5)),
        (Patch(name="a"), Patch(name="a")),
        (NOON, datetime(2026, 3, 28, 12, tzinfo=TzInfo(0))),
        (NOON.astimezone(BERLIN), NOON.astimezone(ZoneInfo("Europe/Berlin"))),
        (decimal.Decimal("1.00"), decimal.Decimal("1.00")),
        (Right.READ | Right.WRITE, Right(3)),
    ],
)
def test_a_copy_is_the_same(one: Any, other: Any) -> None:
    """It need not be one object; pydantic's zone stands for the standard library's."""
    assert is_same(one, other)
