"""Schemas of events: whole, exact for each type, open for what a task publishes without a class."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from tests.documents import content_schema, errors, references

from asyncbg.core.engine_events import ENGINE_EVENTS, JobRetrying, StreamReset
from asyncbg.core.event_model import EventModel, Vocabulary
from asyncbg.web.event_schema import OTHER, EventSchemas, data_schema


class Place(BaseModel):
    """Where something is."""

    shelf: int


class ParcelFound(EventModel):
    """It was somewhere."""

    event_type = "parcel.found"

    place: Place = Field(description="at last", examples=[{"shelf": 3}])
    looked_in: list[Place] = Field(default=[], description="before")


class Branch(BaseModel):
    """A tree."""

    branches: "list[Branch]"


class TreeGrown(EventModel):
    """It has one branch more."""

    event_type = "tree.grown"

    tree: Branch


class Opaque(EventModel):
    """Something happened."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    event_type = "thing.done"

    thing: asyncio.Event


SCHEMAS = EventSchemas(Vocabulary.of([*ENGINE_EVENTS, ParcelFound]))


def frame(kind: str, *, event_id: str | None = "e5-7", **data: Any) -> dict[str, Any]:
    """One frame of an event of a job."""
    told = {
        "id": event_id,
        "type": kind,
        "time": "2026-11-22T23:47:37.732Z",
        "subject": "j1",
        "task": "t",
        "batch": "j1",
        "owner": "ada",
        "attempt": 1,
        "data": data,
    }
    return {"event": kind, "data": json.dumps(told), **({} if event_id is None else {"id": event_id})}


def complaints(sent: dict[str, Any]) -> list[str]:
    """What is wrong with a frame, inside and out."""
    item = SCHEMAS.frame()
    return errors(item, sent) + errors(content_schema(item, sent["event"]), json.loads(sent["data"]))


def test_the_schemas_are_whole() -> None:
    """A document may hold one anywhere: nothing is referred to."""
    assert not list(references([SCHEMAS.frame(), SCHEMAS.payloads]))


def test_nested_data_stands_in_its_place() -> None:
    """With what the field says of it."""
    place = data_schema(ParcelFound)["properties"]["place"]

    assert place["description"] == "at last"
    assert place["properties"] == {"shelf": {"type": "integer"}}
    assert data_schema(StreamReset)["properties"]["jobs"]["items"]["properties"]["state"]["enum"][0] == "waiting"


def test_what_may_be_missing_is_not_required() -> None:
    """A field with a default need not be there."""
    assert data_schema(ParcelFound)["required"] == ["place"]
    assert data_schema(JobRetrying)["required"] == ["error", "delay_s"]


@pytest.mark.parametrize("name", SCHEMAS.payloads)
def test_every_example_is_as_its_schema_says(name: str) -> None:
    """And as no other type's."""
    [example] = SCHEMAS.payloads[name]["examples"]

    assert [other for other, schema in SCHEMAS.payloads.items() if not errors(schema, example)] == [name]


@pytest.mark.parametrize(
    "sent",
    [
        frame("job.started"),
        frame("job.queued"),
        frame("job.queued", reason="retried"),
        frame("job.progress", event_id=None, current=1, total=None, message="", unit=""),
        frame("loop.blocked", task="t", line="m.py:1 in f", seconds=0.5),
        frame("loop.blocked", event_id=None, task="t", line="m.py:1 in f", seconds=0.5),
        frame("parcel.found", place={"shelf": 1}),
        frame("somebody.else", whatever=[1]),
    ],
    ids=lambda sent: sent["event"],
)
def test_a_frame_of_its_kind_fits(sent: dict[str, Any]) -> None:
    """The engine's, those with a class, and those without."""
    assert complaints(sent) == []


@pytest.mark.parametrize(
    "sent",
    [
        frame("job.started", event_id=None),
        frame("job.progress", current=1, total=None, message="", unit=""),
        frame("job.failed"),
        frame("job.retrying", error={"type": "E", "message": ""}, delay_s=-1),
        frame("parcel.found", place=3),
        frame("somebody.else", event_id=None),
        {**frame("job.started"), "id": "no cursor"},
    ],
    ids=lambda sent: sent["event"],
)
def test_a_frame_of_another_kind_does_not_fit(sent: dict[str, Any]) -> None:
    """An id that is missing or too many, data of another shape."""
    assert complaints(sent) != []


def test_a_later_version_may_tell_more() -> None:
    """A member that the schema does not name breaks no client."""
    sent = frame("job.failed", error={"type": "E", "message": "", "cause": "x"}, hint="y")

    assert complaints(sent) == []


def test_what_nobody_declared_is_open() -> None:
    """Its data is whatever the task gave; a type that has a class does not pass for it."""
    other = SCHEMAS.payloads[OTHER]

    assert errors(other, json.loads(frame("somebody.else", n=1)["data"])) == []
    assert errors(other, json.loads(frame("parcel.found", n=1)["data"])) != []


def test_the_name_of_the_open_schema_is_taken() -> None:
    """A class of that name would stand in its place."""
    taken = type(OTHER, (EventModel,), {"__module__": __name__, "__doc__": "It happened.", "event_type": "a.b"})

    with pytest.raises(
        ValueError, match="TaskEvent is the name of the schema for events without a class; give your class another"
    ):
        EventSchemas(Vocabulary.of([taken]))


def test_data_that_holds_itself_is_refused() -> None:
    """A schema without references cannot tell of it."""
    with pytest.raises(TypeError, match=r"the data of TreeGrown is recursive \(Branch\); describe"):
        data_schema(TreeGrown)


def test_data_without_a_json_form_is_refused() -> None:
    """By the class' name."""
    with pytest.raises(TypeError, match="the data of Opaque has no JSON Schema"):
        data_schema(Opaque)
