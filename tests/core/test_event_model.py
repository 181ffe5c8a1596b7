"""A class of events says when they happen and what their data is; a vocabulary holds classes that fit together."""

from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from asyncbg.core.engine_events import ENGINE_EVENTS, JobQueued
from asyncbg.core.event import EventType
from asyncbg.core.event_model import EventModel, Publisher, Vocabulary, example_of, meaning_of
from asyncbg.engine.watchdog import LOOP_BLOCKED


class OrderShipped(EventModel):
    """The parcel left the house."""

    event_type = "order.shipped"

    order: int = Field(description="the number of the order", examples=[7])
    note: str = ""


def variant(name: str, doc: str | None, **members: Any) -> type[EventModel]:
    """A class made on the spot."""
    return type(name, (EventModel,), {"__module__": __name__, "__doc__": doc, **members})


def test_the_engines_types_have_a_class_each() -> None:
    """In the order of EventType; beside them the watchdog's and the stream's own."""
    of_engine = [model.event_type for model in ENGINE_EVENTS if model.event_publisher is Publisher.ENGINE]
    others = [model.event_type for model in ENGINE_EVENTS if model.event_publisher is not Publisher.ENGINE]

    assert of_engine == [kind.value for kind in EventType]
    assert others == [LOOP_BLOCKED, "stream.reset", "stream.position", "stream.bye"]


@pytest.mark.parametrize("model", ENGINE_EVENTS, ids=lambda model: model.event_type)
def test_every_example_is_valid_data(model: type[EventModel]) -> None:
    """What the documents show is what the class takes, and every field says what it holds."""
    assert isinstance(model.model_validate(example_of(model)), model)
    assert all(field.description and field.examples for field in model.model_fields.values())


def test_a_class_says_when_it_happens() -> None:
    """Its docstring is the meaning."""
    assert meaning_of(OrderShipped) == "The parcel left the house."


def test_an_example_is_made_of_the_fields() -> None:
    """The first example of each, or its default."""
    assert example_of(OrderShipped) == {"order": 7, "note": ""}


def test_an_event_cannot_be_changed() -> None:
    """A fact is a fact."""
    event = OrderShipped(order=7)

    with pytest.raises(ValidationError, match="frozen"):
        event.order = 8  # type: ignore[misc]  # the very thing


def test_an_event_takes_no_member_it_does_not_name() -> None:
    """A slip of the pen is told at once; those who read the schema must take what a later version adds."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        OrderShipped.model_validate({"order": 7, "nte": "x"})
    assert "additionalProperties" not in OrderShipped.model_json_schema()


def test_a_data_field_may_be_named_type() -> None:
    """What the class says of itself has names of its own."""

    class Weighed(EventModel):
        """It was put on the scales."""

        event_type = "parcel.weighed"

        type: str

    assert Weighed(type="heavy").model_dump() == {"type": "heavy"}


def test_a_vocabulary_keeps_the_order() -> None:
    """The documents tell of the types as they were given; twice the same class is once."""
    vocabulary = Vocabulary.of([JobQueued, OrderShipped, JobQueued])

    assert list(vocabulary) == [JobQueued, OrderShipped]
    assert vocabulary.names == ["job.queued", "order.shipped"]


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (variant("Nameless", "It happened."), "Nameless needs an event_type of the form noun.verb"),
        (variant("Wordy", "It happened.", event_type="it happened"), "not 'it happened'"),
        (variant("Short", "It happened.", event_type="shipped"), "not 'shipped'"),
        (variant("Mine", "It happened.", event_type="job.shipped"), "job.shipped are the engine's own"),
        (variant("Held", "It happened.", event_type="loop.blocked"), "loop.blocked are the engine's own"),
        (variant("Silent", None, event_type="order.lost"), "Silent does not say when it happens; give it a docstring"),
        (variant("Other", "It happened.", event_type="order.shipped"), "are both named order.shipped; rename one"),
        (variant("OrderShipped", "It happened.", event_type="order.sent"), "are both named OrderShipped; rename one"),
    ],
)
def test_a_class_that_cannot_stand_there_is_refused(model: type[EventModel], complaint: str) -> None:
    """By its name, with what to do about it."""
    with pytest.raises(ValueError, match=complaint):
        Vocabulary.of([OrderShipped, model])


@pytest.mark.parametrize("thing", ["order.shipped", OrderShipped(order=7), BaseModel, None])
def test_what_is_no_class_of_events_is_refused(thing: Any) -> None:
    """A name, an instance, another model."""
    with pytest.raises(TypeError, match=r"is no event class; derive it from asyncbg\.EventModel"):
        Vocabulary.of([thing])
