"""Tasks: the argument codec, the names that last, and the registry."""

import asyncio
import functools
import math
import string
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, SecretStr, computed_field, model_validator

from asyncbg.core.retry import RetryPolicy
from asyncbg.core.same_value import is_same
from asyncbg.engine.arguments import Arguments, arguments_of
from asyncbg.engine.dependencies import Depends
from asyncbg.engine.options import TaskOptions
from asyncbg.engine.progress import Progress
from asyncbg.engine.registry import Registry, durable_name, unwrap_partial
from asyncbg.engine.task import TaskDefinition, dump_result, is_async_callable
from asyncbg.errors import (
    ArgumentsError,
    DuplicateTaskError,
    OptionsError,
    ResultError,
    TaskChangedError,
    UnknownTaskError,
)
from asyncbg.privacy import Personal

# The codec


class Colour(StrEnum):
    """An enumeration of texts."""

    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    """An enumeration of numbers."""

    SMALL = 1
    LARGE = 2


class Odd(Enum):
    """An enumeration of anything."""

    TEXT = "text"
    PAIR = (1, 2)


class Address(BaseModel):
    """A model with what models may have."""

    street: str = Field(alias="streetName")
    number: int = 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def line(self) -> str:
        """Computed, so it is not read back."""
        return f"{self.street} {self.number}"


class Pair(NamedTuple):
    """A named tuple."""

    left: int
    right: str


@dataclass(frozen=True)
class Point:
    """A dataclass."""

    x: float
    y: float


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
ODD = st.sampled_from(
    [
        b"\xff", object(), {1, 2}, (1, [2]), {1: 2}, {None: 1}, Decimal("1.0"), Fraction(1, 3), 1j, Path("a"),
        Colour.RED, Size.LARGE, Odd.PAIR, Point(1, 2), Pair(1, "a"), OrderedDict(a=1), defaultdict(int, a=1), range(3),
        int, len, "\ud800", 10**5000, math.inf, -0.0, SecretStr("s"), float("nan"), [object()], date.max,
    ]
)  # fmt: skip
TYPED: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(st.characters()),
    int: st.integers() | st.just(10**5000),
    float: st.floats(),
    bool: st.booleans(),
    bytes: st.binary(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    datetime: st.datetimes(timezones=st.none() | st.just(timezone(timedelta(hours=2)))),
    date: st.dates(),
    time: st.times(),
    timedelta: st.timedeltas(),
    UUID: st.uuids(),
    Colour: st.sampled_from(Colour),
    Size: st.sampled_from(Size),
    Odd: st.sampled_from(Odd),
    Point: st.builds(Point, st.floats(), st.floats()),
    Pair: st.builds(Pair, st.integers(), st.text()),
    Address: st.builds(Address, streetName=st.text(), number=st.integers()),
    list[int]: st.lists(st.integers()),
    set[str]: st.sets(st.text()),
    tuple[int, str]: st.tuples(st.integers(), st.text()),
    dict[str, float]: st.dictionaries(st.text(), st.floats()),
    dict[int, list[Point]]: st.dictionaries(st.integers(), st.lists(st.builds(Point, st.floats(), st.floats()))),
    int | str: st.integers() | st.text(string.digits),
    float | int: st.floats() | st.integers(),
    str | UUID: st.uuids() | st.uuids().map(str),
    datetime | str: st.datetimes() | st.datetimes().map(str),
    bytes | str: st.binary() | st.text(),
    Colour | str: st.sampled_from(["red", Colour.RED, "green"]),
    Literal["a", 1]: st.sampled_from(["a", 1]),
    Any: JSON | ODD,
    object: JSON | ODD,
    list[Any]: st.lists(JSON | ODD),
}


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200, deadline=None)
@given(st.data())
def test_what_dump_accepts_reads_back_the_same(data: st.DataObject) -> None:
    """For any types and values: either there is JSON that reads back as the very same arguments, or there is none."""
    names = data.draw(st.lists(st.sampled_from(["a", "copy", "model_config", "self", "_x"]), unique=True, max_size=3))
    hints = {name: data.draw(st.sampled_from(list(TYPED))) for name in names}
    arguments = Arguments(function_of(hints))
    bound = arguments.bind("task", (), {name: data.draw(TYPED[hint]) for name, hint in hints.items()})

    text = arguments.dump(bound)

    if text is not None:
        assert is_same(arguments.load("task", text), bound)


@settings(deadline=None)
@given(st.lists(JSON, max_size=4), st.dictionaries(st.text(min_size=1), JSON, max_size=4))
def test_any_json_may_be_given_by_position_and_by_name(args: list[Any], kwargs: dict[str, Any]) -> None:
    """``*args`` and ``**kwargs`` take any names, also those that are no identifiers, and arrive as given."""

    def function(first: Any = None, /, *rest: Any, **named: Any) -> Any:
        return [first, *rest], named

    arguments = arguments_of(function)
    bound = arguments.bind("task", args, kwargs)
    text = arguments.dump(bound)
    read = bound if text is None else arguments.load("task", text)
    spread_args, spread_kwargs = arguments.spread(read)

    got_args, got_kwargs = function(*spread_args, **spread_kwargs)
    assert repr(got_args) == repr(args or [None])
    assert repr(got_kwargs) == repr(kwargs)


def function_of(hints: dict[str, Any]) -> Callable[..., Any]:
    """A function with these parameters."""
    lines = ", ".join(hints)
    scope: dict[str, Any] = {}
    exec(f"def function({lines}): ...", scope)  # noqa: S102 - the names are ours
    function: Callable[..., Any] = scope["function"]
    function.__annotations__ = dict(hints)
    return function


def doubled(text: str) -> str:
    """A validator that is not the same when it is applied twice."""
    return text + text


class Restless(BaseModel):
    """A model that changes whenever it is validated."""

    count: int

    @model_validator(mode="after")
    def _count(self) -> "Restless":
        self.count += 1
        return self


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (SecretStr, "hidden"),
        (Any, b"bytes"),
        (Any, (1, 2)),
        (Any, math.nan),
        (str, "\ud800"),
    ],
)
def test_a_value_that_json_would_change_has_no_text(hint: Any, value: Any) -> None:
    """A secret, a lone surrogate, a tuple that nobody declared: the job is not durable."""
    arguments = Arguments(function_of({"it": hint}))

    assert arguments.dump(arguments.bind("task", (value,), {})) is None


@pytest.mark.parametrize(
    ("hint", "value"),
    [(Annotated[str, AfterValidator(doubled)], "a"), (Restless, {"count": 1}), (Path, Path("a")), (float, math.nan)],
)
def test_a_value_is_validated_once(hint: Any, value: Any) -> None:
    """A validator that changes what it has validated does so when the job is added, and never again."""
    arguments = Arguments(function_of({"it": hint}))
    bound = arguments.bind("task", (value,), {})

    text = arguments.dump(bound)

    assert text is not None
    assert is_same(arguments.load("task", text), bound)


def test_a_generator_is_not_consumed_by_looking() -> None:
    """What can be iterated once is left to the task."""

    def function(items: Any) -> None: ...

    items = iter([1, 2])
    assert arguments_of(function).dump({"items": items}) is None
    assert list(items) == [1, 2]


def test_an_equality_that_raises_is_no_error() -> None:
    """As with arrays, whose ``==`` gives no truth: the job is not durable."""

    class Odd(dict[str, int]):
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None

    def function(it: Any) -> None: ...

    arguments = arguments_of(function)
    assert arguments.dump({"it": Odd(a=1)}) is None


def test_personal_parameters_are_known() -> None:
    """Marked parameters go with the job, so that whoever shows its arguments can mask them."""

    def function(email: Annotated[str, Personal("email")], text: str) -> None: ...

    assert arguments_of(function).personal == '{"email": "email"}'


# By name


def defaults(a: int = 1, b: int = 2, /, c: int = 3, *rest: int, d: int = 4) -> list[int]:
    """Everything has a default."""
    return [a, b, c, *rest, d]


@pytest.mark.parametrize(
    ("given_by_name", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"b": 20}, [1, 20, 3, 4]),
        ({"c": 30}, [1, 2, 30, 4]),
        ({"a": 10, "*": [50, 60]}, [10, 2, 3, 50, 60, 4]),
        ({"d": 40, "c": 30}, [1, 2, 30, 40]),
    ],
)
def test_arguments_by_name_leave_no_gap(given_by_name: dict[str, Any], expected: list[int]) -> None:
    """Submitted from outside, any may be left out: the function's defaults fill what stands before a given one."""
    arguments = arguments_of(defaults)

    args, kwargs = arguments.spread(arguments.validate("task", given_by_name))

    assert defaults(*args, **kwargs) == expected


def test_a_dependency_may_stand_between_positional_arguments() -> None:
    """With ``*args`` all is passed by position, also what is supplied."""

    def function(a: int, mailer: str = Depends(lambda: "mailer"), *rest: int) -> list[Any]:
        return [a, mailer, *rest]

    arguments = arguments_of(function)
    bound = arguments.bind("task", (1, 2, 3), {})
    args, kwargs = arguments.spread({"mailer": "a mailer", **bound})

    assert function(*args, **kwargs) == [1, "a mailer", 2, 3]


def test_from_outside_no_dependency_can_be_given() -> None:
    """A caller by name never replaces what the task is supplied with; code that hands a task over may."""

    def function(a: int, mailer: str = Depends(lambda: "mailer"), progress: Progress = Progress()) -> None: ...

    arguments = arguments_of(function)
    for name in ("mailer", "progress"):
        with pytest.raises(ArgumentsError) as caught:
            arguments.validate("task", {"a": 1, name: "mine"})
        assert caught.value.errors[0]["loc"] == [name]

    bound = arguments.bind("task", (1,), {"mailer": "mine"})
    assert bound == {"a": 1, "mailer": "mine"}
    assert arguments.dump(bound) is None


def test_stored_arguments_that_no_longer_fit_are_an_error() -> None:
    """The function has changed since the job was stored: the error names what does not fit."""
    arguments = arguments_of(defaults)

    with pytest.raises(ArgumentsError, match="colour"):
        arguments.load("task", '{"colour": "red"}')
    with pytest.raises(ArgumentsError):
        arguments.load("task", "no json")


def test_an_error_never_shows_a_value() -> None:
    """Neither its text nor its items hold what was given."""

    def function(age: int, names: list[int], when: datetime) -> None: ...

    with pytest.raises(ArgumentsError) as caught:
        arguments_of(function).bind(
            "task", ("topsecret-canary7f3a",), {"names": ["topsecret-canary7f3a"], "when": "topsecret-canary7f3a"}
        )

    assert "canary7f3a" not in f"{caught.value} {caught.value.errors} {caught.value.__cause__}"


# The cache


def test_closures_of_one_definition_are_read_once() -> None:
    """A closure made in every request costs no new validator."""

    def make(word: str) -> Callable[[int], None]:
        def function(number: int, items: list[int] | None = None) -> None:
            print(word)  # noqa: T201 - never called

        return function

    assert arguments_of(make("a")) is arguments_of(make("b"))


def test_functions_of_one_code_with_other_traits_are_read_anew() -> None:
    """Other defaults, other annotations, another function below the decorator."""

    def make(default: Any, hint: Any) -> Callable[..., Any]:
        def function(it: hint = default, *, other: int = 1) -> None: ...

        return function

    assert arguments_of(make(Progress(), Any)).injected == {"it"}
    assert arguments_of(make(5, Any)).injected == set()
    with pytest.raises(ArgumentsError):
        arguments_of(make(5, int)).bind("task", ("a",), {})
    arguments_of(make(5, str)).bind("task", ("a",), {})


# Names


async def known(a: int = 1) -> None:
    """A function of this module."""


replaced = known


def test_a_name_lasts_only_where_it_leads_back() -> None:
    """``module:qualname`` must be the very function; a partial, a lambda or a local one has no lasting name."""

    def local() -> None: ...

    assert durable_name(known) == f"{__name__}:known"
    assert durable_name(asyncio.sleep) == "asyncio.tasks:sleep"
    nameless: list[Any] = [local, lambda: None, functools.partial(known), [].append]
    assert [durable_name(each) for each in nameless] == [None] * 4


def test_partials_are_taken_apart() -> None:
    """However deep: the inner arguments first, the outer keywords win."""
    inner = functools.partial(functools.partial(print, 1, sep="a"), 2, sep="b", end="c")

    assert unwrap_partial(inner, (3,), {"end": "d"}) == (print, (1, 2, 3), {"sep": "b", "end": "d"})


def test_what_gives_a_coroutine_is_known() -> None:
    """``async def`` below a partial, as a method, as ``__call__``."""

    class Callable_:  # noqa: N801 - named after what it is
        async def __call__(self) -> None: ...
        async def method(self) -> None: ...
        def plain(self) -> None: ...

    one = Callable_()
    assert all(map(is_async_callable, (known, functools.partial(known), one, one.method)))
    plain: list[Any] = [print, one.plain, Callable_]
    assert not any(map(is_async_callable, plain))


# The registry


def define(name: str, function: Callable[..., Any]) -> TaskDefinition:
    """A task with the default options."""
    return TaskDefinition.of(name, function, TaskOptions())


def test_a_name_is_one_function_s() -> None:
    """Registering a function again is fine (a reload); another function under the name is an error that names it."""
    registry = Registry()
    registry.add(define("work", known))
    registry.add(define("work", known))

    with pytest.raises(DuplicateTaskError, match="'work'"):
        registry.add(define("work", print))
    assert registry.names == ["work"]


def test_an_unknown_task_names_the_known_ones() -> None:
    """Whoever asks learns what there is; functions that were only handed over are not offered."""
    registry = Registry()
    registry.add(define("b", known))
    registry.add(define("a", known))
    registry.define_function(known)

    with pytest.raises(UnknownTaskError, match=r"'c'; known: a, b"):
        registry.get("c")
    with pytest.raises(UnknownTaskError):
        registry.get(f"{__name__}:known")


@pytest.mark.parametrize(
    "name", ["", ":", "no_such_module:run", f"{__name__}:no", f"{__name__}:no.more", "os:path", "x"]
)
def test_a_stored_name_that_leads_nowhere_finds_nothing(name: str) -> None:
    """Nothing is imported to find it: the job is left to a process that has it."""
    assert Registry().find(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{__name__}:replaced", "another function"),
        (f"{__name__}:pytest.raises", "another function"),
        (f"{__name__}:Pair", "a class"),
        ("__main__:known", "another module in every program"),
    ],
)
def test_a_stored_name_that_leads_to_something_else_is_an_error(name: str, why: str) -> None:
    """An alias, a class, the module of another program: never a run of the wrong code."""
    with pytest.raises(TaskChangedError, match=why) as caught:
        Registry().find(name)

    assert name in str(caught.value)


def test_a_stored_name_finds_the_function_of_a_loaded_module() -> None:
    """So jobs of functions that were never registered run after a restart."""
    found = Registry().find(f"{__name__}:known")

    assert found is not None
    assert found.function is known


# Results


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ({"a": [1]}, '{"a":[1]}'),
        (Point(1.5, 2), '{"x":1.5,"y":2}'),
        (math.inf, "null"),
        ([math.nan], "[null]"),
    ],
)
def test_a_result_is_json(value: Any, text: str) -> None:
    """Models and dataclasses too."""
    assert dump_result("task", value) == text


def test_a_result_without_json_is_an_error_that_names_its_type() -> None:
    """And the task, and what to do; never the value."""
    with pytest.raises(ResultError, match=r"'task'.*of type object.*return a model"):
        dump_result("task", object())


def numbers() -> Iterator[int]:
    """A generator function is no task that gives a result."""
    yield 1


def test_a_generator_as_a_result_is_a_list() -> None:
    """What can be iterated has a JSON form."""
    assert dump_result("task", numbers()) in {"[1]", "null"}


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0}, {"timeout": -1}, {"timeout": math.inf}, {"timeout": math.nan}, {"timeout": 1e15},
        {"timeout": "5"}, {"timeout": True}, {"priority": 10**30}, {"priority": 1.5}, {"priority": True},
        {"priority": None}, {"queue": ""}, {"queue": "a\nb"}, {"queue": "\ud800"}, {"queue": None},
        {"retry": RetryPolicy(retries=-1)}, {"retry": RetryPolicy(retries=10**9)},
        {"retry": RetryPolicy(retries=1.5)},  # type: ignore[arg-type]  # the point
    ],
)  # fmt: skip
def test_options_that_no_task_can_have_are_refused(options: dict[str, Any]) -> None:
    """When the task is defined, not when its first job runs."""
    with pytest.raises(OptionsError, match="should be") as caught:
        TaskOptions(**options)

    assert isinstance(caught.value, ValueError)
