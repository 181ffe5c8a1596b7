"""Arguments on disk: durable means the same value, validated once; whatever else runs from memory."""

import enum
import tempfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    EmailStr,
    Field,
    FilePath,
    FutureDate,
    FutureDatetime,
    GetCoreSchemaHandler,
    HttpUrl,
    NewPath,
    PastDatetime,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    RootModel,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from asyncbg.core.same_value import is_same
from asyncbg.core.stored_arguments import shown_arguments
from asyncbg.engine.arguments import Arguments
from asyncbg.errors import ArgumentsError, OversizeArgumentsError

T = TypeVar("T")
BERLIN = ZoneInfo("Europe/Berlin")


class Colour(enum.StrEnum):
    """An enumeration of texts."""

    RED = "red"


class Right(enum.IntFlag):
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
    tags: list[str] = field(default_factory=list)


@dataclass
class Place(Point):
    """A point with a name."""

    name: str = ""


class Patch(BaseModel):
    """What a PATCH route takes: what was not sent is not set."""

    name: str | None = None
    email: str | None = None


class Longer(Patch):
    """A patch with more."""

    age: int = 0


class Order(BaseModel):
    """A model whose defaults are made anew each time."""

    id: UUID = Field(default_factory=uuid4)
    day: date = Field(default_factory=date.today)
    patch: Patch = Patch()


class Open(BaseModel):
    """A model that takes more than it declares."""

    model_config = ConfigDict(extra="allow")


class Hidden(BaseModel):
    """A model with a private attribute."""

    number: int = 1
    _seen: int = PrivateAttr(default=0)


class Easy(BaseModel):
    """A model that thinks all its like are equal."""

    any: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Easy)

    __hash__ = None  # type: ignore[assignment]  # as Python has it for a class with its own ==


class Raw(BaseModel):
    """A model with what JSON has no form for."""

    data: bytes
    ratio: float


class Box(BaseModel, Generic[T]):
    """A generic model."""

    it: T


class Names(RootModel[list[str]]):
    """A model that is a list."""


class Username(str):
    """A type of the user's own, as pydantic's documentation shows it."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, handler(str))


@dataclass(frozen=True)
class Money:
    """A type that a function of the user's makes of text."""

    cents: int

    @staticmethod
    def parse(value: object) -> "Money":
        return value if isinstance(value, Money) else Money(int(str(value).removesuffix(" ct")))


Price = Annotated[Money, PlainValidator(Money.parse), PlainSerializer(lambda money: f"{money.cents} ct")]


def hidden(seen: int) -> Hidden:
    """A model whose private attribute was set."""
    model = Hidden()
    model._seen = seen
    return model


def arguments_for(hint: Any) -> Arguments:
    """The arguments of a function with one parameter."""

    def function(it: Any) -> None: ...

    function.__annotations__ = {"it": hint}
    return Arguments(function)


DURABLE: list[tuple[Any, Any]] = [
    (datetime, datetime(2026, 3, 28, 12, tzinfo=BERLIN)),
    (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)),
    (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)),
    (datetime, datetime(1890, 1, 1, tzinfo=BERLIN)),
    (datetime, datetime(2026, 3, 28, 12, tzinfo=UTC)),
    (datetime, datetime(2026, 3, 28, 12, tzinfo=timezone(timedelta(hours=-3)))),
    (datetime, datetime(2026, 3, 28, 12, 0, 0, 7)),  # noqa: DTZ001 - a naive one
    (list[datetime | None], [None, datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("UTC"))]),
    (dict[str, Box[datetime]], {"a": Box[datetime](it=datetime(2026, 3, 28, 12, tzinfo=BERLIN))}),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (Decimal, Decimal("1.00")),
    (float, -0.0),
    (float, float("nan")),
    (float, float("inf")),
    (bytes, b"\xff\0"),
    (Colour, Colour.RED),
    (dict[Colour, int], {Colour.RED: 1}),
    (Counter[str], Counter("aab")),
    (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    (defaultdict[str, list[int]], defaultdict(list, a=[1])),
    (deque[int], deque([1, 2])),
    (frozenset[int], frozenset({1, 2})),
    (tuple[int, ...], (1, 2)),
    (Pair, Pair(1, 2)),
    (Path, Path("a/b")),
    (PurePosixPath, PurePosixPath("a")),
    (Point, Point(1.5, ["a"])),
    (Patch, Patch(name="Ada")),
    (Patch, Patch()),
    (list[Patch], [Patch(email=None), Patch(name="a")]),
    (Longer, Longer(age=3)),
    (Order, Order()),
    (dict[int, tuple[Order, ...]], {1: (Order(), Order(id=uuid4(), patch=Patch(name="x")))}),
    (Box[int], Box[int](it=1)),
    (Box[Patch], Box[Patch](it=Patch(name="a"))),
    (Names, Names(["a"])),
    (Open, Open.model_validate({"more": {"a": [1, None]}})),
    (Hidden, Hidden()),
    (Easy, Easy()),
    (Raw, Raw(data=b"\xff", ratio=float("inf"))),
    (Username, Username("ada")),
    (Price, Money(5)),
    (EmailStr, "ada.canary7f3a@canary7f3a.example"),
    (HttpUrl, HttpUrl("https://example.com/a")),
    (Any, {"a": [1, 1.5, None, True, "x"]}),
    (Literal["a", 1], 1),
    (int | str, "1"),
]
NOT_DURABLE: list[tuple[Any, Any]] = [
    (Any, Colour.RED),
    (dict, {"colour": Colour.RED}),
    (list, [Right.READ]),
    (Any, Right.READ | Right.WRITE),
    (Any, Counter("a")),
    (Any, OrderedDict(a=1)),
    (Any, defaultdict(int, a=1)),
    (Any, {1: 2}),
    (Any, (1,)),
    (Any, {1}),
    (Any, frozenset({1})),
    (Any, Pair(1, 2)),
    (Any, Decimal(1)),
    (Any, b"a"),
    (Any, float("nan")),
    (Any, Path("a")),
    (Any, timedelta(1)),
    (Any, datetime(2026, 1, 1, tzinfo=UTC)),
    (Any, Patch(name="a")),
    (Any, uuid4()),
    (datetime, datetime(2026, 10, 25, 2, 30, fold=1)),  # noqa: DTZ001 - the point
    (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET"))),
    (time, time(12, fold=1)),
    (time, time(12, tzinfo=BERLIN)),
    (Point, Place(1.5, name="a")),
    (Patch, Longer(age=3)),
    (list[Patch], [Longer(age=3)]),
    (Open, Open.model_validate({"more": (1, 2)})),
    (Hidden, hidden(1)),
    (Easy, Easy(any=(1, 2))),
    (Easy, Easy(any=Colour.RED)),
    (Box, Box[int](it=1)),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "value"), DURABLE, ids=map(str, range(len(DURABLE))))
def test_a_typed_argument_reads_back_as_the_same_value(hint: Any, value: Any) -> None:
    """Of the same types, with the same fields set, zone and fold; and it is what the task would get at once."""
    arguments = arguments_for(hint)
    bound = arguments.bind("task", (value,), {})

    text = arguments.dump(bound)

    assert text is not None
    assert is_same(arguments.load("task", text), bound)
    assert is_same(bound["it"], value)


@pytest.mark.parametrize(("hint", "value"), NOT_DURABLE, ids=map(str, range(len(NOT_DURABLE))))
def test_an_argument_that_json_would_change_is_not_durable(hint: Any, value: Any) -> None:
    """An equal value of another type is another value."""
    arguments = arguments_for(hint)

    assert arguments.dump(arguments.bind("task", (value,), {})) is None


def test_what_was_never_set_is_noted_where_a_default_is_made_anew() -> None:
    """The stored text holds all values; whoever looks at the job does not see the note."""
    arguments = arguments_for(Order)
    bound = arguments.bind("task", (Order(patch=Patch(name="a")),), {})

    text = arguments.dump(bound) or ""

    assert arguments.load("task", text)["it"].model_fields_set == {"patch"}
    assert set(shown_arguments(text)) == {"it"}
    assert '"$":{"unset":[' in text


@pytest.mark.parametrize("value", ['","$":{"unset":[]}}', {"$": {"validators": True}}, {"a": 1, "$": {"unset": []}}])
def test_a_value_that_looks_like_a_note_is_a_value(value: Any) -> None:
    """As text, as a member, and as the last member of all."""
    arguments = arguments_for(Any)
    bound = {"it": value}

    text = arguments.dump(bound) or ""

    assert arguments.load("task", text) == shown_arguments(text) == bound


# Validated once

world: dict[str, bool] = {}


def judged(value: Any) -> Any:
    """A validator that asks the world."""
    if not world["allows"]:
        raise ValueError("not any more")
    return value


def judged_around(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """The same, around the type's own."""
    return judged(handler(value))


class Judged(BaseModel):
    """A model with validators that ask the world."""

    name: str
    numbers: list[Annotated[int, AfterValidator(judged)]] = []

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return str(judged(value))

    @model_validator(mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return judged(value)

    @model_validator(mode="after")
    def _whole(self) -> "Judged":
        judged(self)
        return self


JUDGED: list[tuple[Any, Any]] = [
    (Annotated[str, AfterValidator(judged)], "a"),
    (Annotated[int, BeforeValidator(judged)], 1),
    (Annotated[datetime, WrapValidator(judged_around)], datetime(2026, 1, 1, tzinfo=UTC)),
    (Annotated[str, PlainValidator(judged)], "a"),
    (list[Annotated[str, AfterValidator(judged)]], ["a"]),
    (dict[str, Judged | None], {"a": Judged.model_construct(name="a", numbers=[1])}),
    (Judged, {"name": "a", "numbers": [1]}),
    (tuple[Judged, Annotated[UUID, AfterValidator(judged)]], ({"name": "a"}, uuid4())),
]


@pytest.mark.parametrize(("hint", "value"), JUDGED, ids=map(str, range(len(JUDGED))))
def test_no_validator_judges_a_second_time(hint: Any, value: Any) -> None:
    """What was accepted when the job was added is accepted for good, whatever has become of the world."""
    world["allows"] = True
    arguments = arguments_for(hint)
    bound = arguments.bind("task", (value,), {})
    text = arguments.dump(bound)
    world["allows"] = False

    assert text is not None
    assert is_same(arguments.load("task", text), bound)
    with pytest.raises(ArgumentsError):
        arguments.bind("task", (value,), {})


def test_a_file_that_is_gone_meanwhile_is_still_the_argument(tmp_path: Path) -> None:
    """Paths that must exist, or must not yet, are looked for when the job is added."""

    def function(file: FilePath, folder: DirectoryPath, new: NewPath) -> None: ...

    with tempfile.NamedTemporaryFile(dir=tmp_path) as file, tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        arguments = Arguments(function)
        bound = arguments.bind("task", (file.name, folder, tmp_path / "new"), {})
        text = arguments.dump(bound) or ""
    (tmp_path / "new").touch()

    assert arguments.load("task", text) == bound


def test_a_time_that_has_passed_meanwhile_is_still_the_argument() -> None:
    """The future is asked for when the job is added."""

    def function(at: FutureDatetime, day: FutureDate, since: PastDatetime) -> None: ...

    arguments = Arguments(function)

    read = arguments.load("task", '{"at":"2020-01-01T00:00:00Z","day":"2020-01-01","since":"2999-01-01T00:00:00Z"}')

    assert read["at"] == datetime(2020, 1, 1, tzinfo=UTC)
    with pytest.raises(ArgumentsError):
        arguments.bind(
            "task", (datetime(2020, 1, 1, tzinfo=UTC), date(2999, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)), {}
        )


def test_a_stored_argument_of_the_wrong_type_is_still_refused() -> None:
    """A deploy that has changed a parameter's type or a model's fields is an error, not a wrong value."""
    with pytest.raises(ArgumentsError):
        arguments_for(int).load("task", '{"it":"many"}')
    with pytest.raises(ArgumentsError):
        arguments_for(Judged).load("task", '{"it":{"numbers":[]}}')


# Bounds, and defaults


@pytest.mark.parametrize(
    ("hint", "value"), [(str, "a" * 2_000), (bytes, b"a" * 2_000), (Any, ["a"] * 1_000), (Any, b"a" * 2_000)]
)
def test_arguments_larger_than_the_bound_are_refused(hint: Any, value: Any) -> None:
    """The error names the bound and says what to do; it never holds the value."""
    arguments = arguments_for(hint)

    with pytest.raises(OversizeArgumentsError, match="ASYNCBG_JOBS__MAX_ARGS_BYTES") as caught:
        arguments.dump({"it": value}, task="work", max_bytes=1_024)

    assert isinstance(caught.value, ArgumentsError)
    assert "work" in str(caught.value)
    assert "aaaa" not in str(caught.value)


def _defaults() -> list[tuple[Callable[..., Any], Any]]:
    def nothing(it: list = None) -> None: ...  # type: ignore[type-arg,assignment]  # noqa: RUF013 - as people write it
    def number(it: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013
    def text(it: str = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013
    def model(it: Patch = None) -> None: ...  # type: ignore[assignment]
    def marked(it: Annotated[str, Field(min_length=3)] = "") -> None: ...
    def word(it: int = "auto") -> None: ...  # type: ignore[assignment]
    def member(it: int = Colour.RED) -> None: ...  # type: ignore[assignment]

    functions: list[Any] = [nothing, number, text, model, marked, word, member]
    return [(function, function.__defaults__[0]) for function in functions]


@pytest.mark.parametrize(("function", "default"), _defaults())
def test_a_parameter_accepts_its_own_default(function: Callable[..., Any], default: Any) -> None:
    """``items: list = None`` is written everywhere, and given as well as left out."""
    arguments = Arguments(function)
    bound = arguments.bind("task", (default,), {})

    assert bound["it"] is default
    assert is_same(arguments.load("task", arguments.dump(bound) or ""), bound)
    with pytest.raises(ArgumentsError):
        arguments.bind("task", (object(),), {})
