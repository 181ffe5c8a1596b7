"""Event types: one class each, whose docstring says when the event happens and whose fields are its data.

The documents are generated from the classes. Events are stored and sent as plain tuples,
:class:`~asyncbg.core.event.Event`, without these classes.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python

from asyncbg.privacy import redact_json
from asyncbg.privacy.marks import Mark, mark_of, masked

RESERVED_PREFIXES = ("job.", "stream.", "loop.")
"""How the names of events begin that no task publishes."""

_EXAMPLE = "[{}:6f1d20a3]"
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


def _as_sent(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Describe a marked field as text, since it is sent as a pseudonym, and allow fields of later versions."""
    schema.pop("additionalProperties", None)
    for name, mark in _marks_of(model).items():
        field = schema.get("properties", {}).get(name)
        if field is not None and isinstance(mark, str):
            told = {key: field[key] for key in ("title", "description") if key in field}
            is_optional = any(one.get("type") == "null" for one in field.get("anyOf", ()))
            kind = ["string", "null"] if is_optional else "string"
            schema["properties"][name] = {**told, "type": kind, "examples": [_EXAMPLE.format(mark)]}


class EventModel(BaseModel):
    """One type of event. Subclass it for your own, hand the class to ``AsyncBG(events=[…])``, publish an instance::

        class OrderShipped(EventModel):
            \"\"\"The parcel left the house.\"\"\"

            event_type = "order.shipped"

            order: int = Field(description="the number of the order", examples=[7])


        await current_job().publish(OrderShipped(order=7))

    The first of each field's ``examples`` is shown in the documents. A field that is marked, such as
    ``to: Annotated[str, Personal("email")]``, is stored and sent as a pseudonym.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, json_schema_extra=_as_sent)

    event_type: ClassVar[str] = ""
    event_publisher: ClassVar[Publisher] = Publisher.TASK
    event_storage: ClassVar[Storage] = Storage.ALL

    def masked(self, clean: Callable[[Any], Any] = redact_json) -> dict[str, Any]:
        """Return the data as it is stored and sent: marked fields as pseudonyms, the others through ``clean``."""
        return dict(masked(self.model_dump(mode="json"), _marks_of(type(self)), clean))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """For ``repr``, which logs and tracebacks use: marked fields as pseudonyms."""
        marks = _marks_of(type(self))
        for name, value in super().__repr_args__():
            mark = marks.get(name or "")
            yield name, value if mark is None else masked(to_jsonable_python(value), mark)


def meaning_of(model: type[EventModel]) -> str:
    """Return when an event of the type happens: the docstring of its class."""
    return inspect.cleandoc(model.__doc__ or "")


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return an example of ``model``: the first example of each field, or its default."""
    shown: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(mark := _marks_of(model).get(name), str):
            shown[name] = _EXAMPLE.format(mark)
        elif field.examples:
            shown[name] = field.examples[0]
        elif not field.is_required():
            shown[name] = field.get_default(call_default_factory=True, validated_data={})
    return shown


@lru_cache(maxsize=1024)
def _marks_of(model: type[BaseModel]) -> Mapping[str, Mark]:
    """Return the personal fields of an event class, with their marks."""
    mark = mark_of(model)
    return {} if mark is None or isinstance(mark, str) else mark


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Event types with distinct names, in the order of the documents."""

    models: tuple[type[EventModel], ...]

    @classmethod
    def of(cls, models: Iterable[type[EventModel]]) -> "Vocabulary":
        """Check the classes. Raises TypeError for an object that is no event class, ValueError for an invalid one."""
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
        raise TypeError(f"{model!r} is no event class; derive it from asyncbg.EventModel")
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
