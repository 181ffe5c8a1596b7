"""Which parts of a type are personal, and what is shown of a value of it."""

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, NewType

import pydantic
import pytest
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypeAliasType, TypedDict

from asyncbg import EventModel
from asyncbg.core.job import Done, JobRecord, JobState, Lease
from asyncbg.engine.arguments import arguments_of
from asyncbg.errors import ArgumentsError
from asyncbg.privacy import Personal
from asyncbg.privacy.marks import ArgumentRedactor, mark_of, masked

Email = Annotated[str, Personal("email")]
Alias = TypeAliasType("Alias", Annotated[str, Personal("alias")])


class Person(BaseModel):
    """A model with a marked field, an alias and a plain one."""

    email: Email
    name: Annotated[str, Personal, Field(serialization_alias="fullName")]
    age: int = 0


@dataclass
class Order:
    """A dataclass that holds models."""

    buyer: Person
    guests: list[Person]


class Row(TypedDict):
    """A typed dictionary."""

    to: Email


class Pair(NamedTuple):
    """A named tuple."""

    place: int
    email: Email


class Tree(BaseModel):
    """A model that holds itself."""

    email: Email
    children: list["Tree"] = []


_PERSON = {"email": "email", "name": "personal", "fullName": "personal"}


@pytest.mark.parametrize(
    ("annotation", "mark"),
    [
        (str, None),
        (Any, None),
        (Email, "email"),
        (Annotated[str, Personal], "personal"),
        (Email | None, "email"),
        (list[Email], {"*": "email"}),
        (dict[str, Email], {"*": "email"}),
        (dict[Email, int], "email"),
        (tuple[int, Email], {"1": "email"}),
        (tuple[Email, ...], {"*": "email"}),
        (Alias, "alias"),
        (NewType("Named", Email), "email"),
        (Awaitable[Email], "email"),
        (Person, _PERSON),
        (Person | int, _PERSON),
        (Person | Row, {**_PERSON, "to": "email"}),
        (Annotated[Person, Personal("person")], "person"),
        (Order, {"buyer": _PERSON, "guests": {"*": _PERSON}}),
        (Row, {"to": "email"}),
        (Pair, {"email": "email", "1": "email"}),
        (RootModel[list[Person]], {"*": _PERSON}),
        (Tree, {"email": "email", "children": {"*": "personal"}}),
    ],
)  # fmt: skip
def test_marks_are_found_wherever_they_are(annotation: Any, mark: Any) -> None:
    """On the type itself, in a union, an item, a field, at any depth; a type in itself is personal as a whole."""
    assert mark_of(annotation) == mark


def test_only_what_is_marked_is_masked() -> None:
    """Marked parts become pseudonyms at any depth, the rest stays; what looks personal there is redacted."""
    value = {
        "buyer": {"email": "ada.canary7f3a@canary7f3a.example", "fullName": "Ada", "age": 36},
        "guests": [{"email": "ada.canary7f3a@canary7f3a.example", "name": "Bob", "age": 7}],
        "note": "from ada.canary7f3a@canary7f3a.example",
    }

    shown = masked(value, mark_of(Order))

    assert re.fullmatch(r"\[email:[0-9a-f]{8}]", shown["buyer"]["email"])
    assert shown["guests"][0]["email"] == shown["buyer"]["email"]
    assert shown["buyer"]["fullName"].startswith("[personal:")
    assert (shown["buyer"]["age"], shown["guests"][0]["age"]) == (36, 7)
    assert "ada" not in str(shown).lower()


def test_secrets_and_cards_get_no_pseudonym() -> None:
    """What must not even be correlated is just removed."""
    shown = masked(
        {"password": "hunter2-canary7f3a", "number": 4111111111111111}, {"password": "secret", "number": "card"}
    )

    assert ":" not in shown["password"]
    assert shown["password"].startswith("[")
    assert ":" not in shown["number"]
    assert "4111" not in shown["number"]


def test_a_function_is_marked_by_its_parameters_and_its_result() -> None:
    """Also item by item in ``*args`` and ``**kwargs``."""

    async def function(to: Email, *more: Email, **named: Person) -> dict[str, Email]:
        return {"to": to, **dict.fromkeys(more, ""), **{name: person.email for name, person in named.items()}}

    assert arguments_of(function).marks == {
        "to": "email",
        "*": {"*": "email"},
        "**": {"*": _PERSON},
        "return": {"*": "email"},
    }


def test_a_job_s_own_personal_values_are_found_in_any_text() -> None:
    """Whole words only, in any value of a marked argument, a model's fields too; short words stay."""
    person = Person(email="ada.canary7f3a@canary7f3a.example", name="Ada canary7f3a", age=36)
    stand_ins = ArgumentRedactor({"person": person, "kind": "Ada"}, {"person": mark_of(Person) or {}})

    shown = stand_ins.clean("no such user Ada canary7f3a, aged 36; Ada canary7f3agate is another")

    assert re.fullmatch(r"no such user \[personal:\w{8}], aged 36; Ada canary7f3agate is another", shown)
    assert stand_ins.clean_json({"Ada canary7f3a": ["Ada canary7f3a"]}) == {
        shown.split()[3].rstrip(","): [shown.split()[3].rstrip(",")]
    }


class Shipped(EventModel):
    """The parcel left the house."""

    event_type = "order.shipped"

    to: Annotated[Email | None, Field(description="whose it is", examples=["ada.canary7f3a@canary7f3a.example"])]
    order: int = Field(description="the number of the order", examples=[7])


def test_an_event_s_marked_fields_are_masked_and_documented_as_text() -> None:
    """In what is stored and sent, in its repr, and in the schema with its example."""
    event = Shipped(to="ada.canary7f3a@canary7f3a.example", order=7)

    assert re.fullmatch(r"\[email:\w{8}]", event.masked()["to"])
    assert event.masked()["order"] == 7
    assert event.to == "ada.canary7f3a@canary7f3a.example"
    assert "ada@" not in repr(event)
    assert "order=7" in repr(event)
    field = Shipped.model_json_schema()["properties"]["to"]
    assert field["type"] == ["string", "null"]
    assert "ada@" not in str(field)


def test_reprs_hold_no_arguments_and_no_results() -> None:
    """A record, a lease or an outcome in a traceback or a log line shows ids only."""
    plain: dict[str, Any] = dict.fromkeys(("task", "queue", "owner", "batch"), "x")
    times: dict[str, Any] = dict.fromkeys(("created_at_ms", "run_at_ms", "started_at_ms", "finished_at_ms"), 1)
    numbers: dict[str, Any] = dict.fromkeys(("n", "priority", "attempt", "max_attempts", "crashes"), 1)
    record = JobRecord(
        id="1", state=JobState.QUEUED, tags=(), durable=True, args='{"a":"hunter2-canary7f3a"}',
        result='"hunter2-canary7f3a"',
        **plain, **times, **numbers,
    )  # fmt: skip
    lease = Lease(1, "1", "x", "x", "x", "x", "[]", 0, 1, 0, 0, 0, 1, 1, '{"a":"hunter2-canary7f3a"}', 1, 1)

    assert "canary7f3a" not in f"{record!r} {lease!r} {Done('hunter2-canary7f3a')!r}"


class Picky(BaseModel):
    """A model whose own validator quotes what it was given."""

    code: str

    @pydantic.field_validator("code")
    @classmethod
    def _refuse(cls, code: str) -> str:
        raise ValueError(f"{code} is unknown")


def test_bad_arguments_are_told_without_the_input() -> None:
    """Also where a validator of the caller's own quotes it, or the name of an argument is the input."""

    def function(item: Picky, when: int = 0) -> None:
        raise AssertionError(item, when)

    with pytest.raises(ArgumentsError) as caught:
        arguments_of(function).bind("function", ({"code": "hunter2-canary7f3a"},), {"when": "hunter2-canary7f3a"})
    with pytest.raises(ArgumentsError) as unknown:
        arguments_of(function).validate(
            "function", {"ada.canary7f3a@canary7f3a.example": 1, "item": "hunter2-canary7f3a"}
        )

    assert "canary7f3a" not in f"{caught.value} {caught.value.errors} {unknown.value}"
    assert "ada@" not in f"{unknown.value} {unknown.value.errors}"
