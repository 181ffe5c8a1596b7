"""What a type of event is: one class, whose docstring says when it happens and whose fields are its data.

The documents are made of the classes. What is stored and sent is a plain tuple, :class:`~asyncbg.event.Event`: no class
is asked on its way.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

RESERVED_PREFIXES = ("job.", "stream.", "loop.")
"""How the names of events begin that no task publishes."""

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+")


class Publisher(StrEnum):
    """Who publishes an event."""

    ENGINE = "engine"
    WATCHDOG = "watchdog"
    STREAM = "stream"
    TASK = "task"


class Storage(StrEnum):
    """Which events of a type are stored: those have an id, and a stream that resumes replays them."""

    ALL = "all"
    OF_JOBS = "of jobs"
    NONE = "none"


def _leave_open(schema: dict[str, Any]) -> None:
    """A later version may tell more, so whoever reads must take members it does not know."""
    schema.pop("additionalProperties", None)


class EventModel(BaseModel):
    """One type of event. Subclass it for your own, hand the class to ``AsyncBG(events=[…])``, publish an instance::

        class OrderShipped(EventModel):
            \"\"\"The parcel left the house.\"\"\"

            event_type = "order.shipped"

            order: int = Field(description="the number of the order", examples=[7])


        await current_job().publish(OrderShipped(order=7))

    The first of each field's ``examples`` is shown in the documents. Streams and logs carry the data as it is: it
    should hold nothing personal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, json_schema_extra=_leave_open)

    event_type: ClassVar[str] = ""
    event_publisher: ClassVar[Publisher] = Publisher.TASK
    event_storage: ClassVar[Storage] = Storage.ALL


def meaning_of(model: type[EventModel]) -> str:
    """When an event of the type happens: the docstring of its class."""
    return inspect.cleandoc(model.__doc__ or "")


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """What ``model`` looks like: of each field the first of its examples, or its default where it has one."""
    shown: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.examples:
            shown[name] = field.examples[0]
        elif not field.is_required():
            shown[name] = field.get_default(call_default_factory=True, validated_data={})
    return shown


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Types of events, each under its own name, in the order in which they are told of."""

    models: tuple[type[EventModel], ...]

    @classmethod
    def of(cls, models: Iterable[type[EventModel]]) -> "Vocabulary":
        """Check the classes. Raises TypeError for what is no event class, ValueError for one that cannot stand here."""
        taken: dict[str, type[EventModel]] = {}
        for model in map(_check, models):
            for name in (model.event_type, model.__name__):
                if (other := taken.setdefault(name, model)) is not model:
                    raise ValueError(f"{_full(model)} and {_full(other)} are both named {name}; rename one of them")
        return cls(tuple(dict.fromkeys(taken.values())))

    def __iter__(self) -> Iterator[type[EventModel]]:
        """Each class."""
        return iter(self.models)

    @property
    def names(self) -> list[str]:
        """Each type's name."""
        return [model.event_type for model in self.models]


def _check(model: object) -> type[EventModel]:
    if not (inspect.isclass(model) and issubclass(model, EventModel)):
        raise TypeError(f"{model!r} is no class of events; derive it from asyncbg.EventModel")
    name = model.event_type
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_full(model)} needs an event_type of the form noun.verb, such as email.sent, not {name!r}")
    if model.event_publisher is Publisher.TASK and name.startswith(RESERVED_PREFIXES):
        raise ValueError(f"{_full(model)}: names such as {name} are the engine's own; begin it with another noun")
    if not meaning_of(model):
        raise ValueError(f"{_full(model)} does not say when it happens; give it a docstring of one sentence")
    return model


def _full(model: type[EventModel]) -> str:
    return f"{model.__module__}.{model.__qualname__}"
