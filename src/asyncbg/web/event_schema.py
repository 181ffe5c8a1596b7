"""JSON Schemas of events, generated from their classes: the payload in ``data:``, and one frame of a stream."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from asyncbg.core.event_model import EventModel, Publisher, Storage, Vocabulary, example_of, meaning_of
from asyncbg.streams.sse_format import MEDIA_TYPE

OTHER: Final = "TaskEvent"
"""The name of the schema for events that a task publishes without a class."""

_ID: Final = "^[A-Za-z0-9._]+-[0-9]+$"
_JOB: Final = "01a205a8-7c81-7000-a84f-7e8968cdc313"
_EXAMPLE: Final = {
    "id": "547cc15b-19",
    "time": "2026-11-22T23:47:37.732Z",
    "subject": _JOB,
    "task": "send_email",
    "batch": _JOB,
    "owner": "anonymous",
    "attempt": 1,
}
_OF_JOB: Final = {
    "task": {"type": "string", "description": "the name of the job's task"},
    "batch": {"type": "string", "description": "the id of the first job of its request"},
    "owner": {"type": "string", "description": "who submitted the job"},
    "attempt": {"type": "integer", "minimum": 0, "description": "attempts begun; 0 before the first"},
}


class EventSchemas:
    """The schemas of a vocabulary: one for each event class by name, and a generic one for events without a class.

    No schema refers to another. Raises TypeError where the data of a class has no JSON Schema, or a recursive one.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Generate the schemas on first use. Raise ValueError where a class has the name of the generic schema."""
        if any(model.__name__ == OTHER for model in vocabulary):
            raise ValueError(
                f"{OTHER} is the name of the schema for events without a class; give your class another name"
            )
        self.vocabulary = vocabulary

    @cached_property
    def payloads(self) -> Mapping[str, dict[str, Any]]:
        """The schemas of the JSON in ``data:``, for each class and for events without one."""
        return {model.__name__: _payload(model) for model in self.vocabulary} | {OTHER: self._other()}

    def frame(self, *, refer_to: str = "") -> dict[str, Any]:
        """Return the schema of one frame of a stream: the OpenAPI ``itemSchema`` of ``text/event-stream``.

        With ``refer_to`` it refers to the payloads below that path, such as ``#/components/schemas/``. Otherwise it
        contains them, without their examples, because FastAPI would drop the nulls in those.
        """

        def content(name: str) -> dict[str, Any]:
            whole = {key: value for key, value in self.payloads[name].items() if key != "examples"}
            schema = {"$ref": refer_to + name} if refer_to else whole
            return {"contentMediaType": "application/json", "contentSchema": schema}

        known = [_frame_of(model, content(model.__name__)) for model in self.vocabulary]
        return {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"type": "string", "description": "the type of the event"},
                "id": {"type": "string", "pattern": _ID, "description": "a cursor; stored events carry one"},
                "retry": {"type": "integer", "minimum": 0, "description": "milliseconds before the next reconnect"},
                "data": {"type": "string", "description": "one line of JSON"},
            },
            "oneOf": [*known, self._other_frame(content(OTHER))],
        }

    def _other(self) -> dict[str, Any]:
        kind = {"type": "string", "not": {"enum": self.vocabulary.names}, "examples": ["order.shipped"]}
        data = {"type": "object", "description": "the data that the task published"}
        example = {**_EXAMPLE, "type": "order.shipped", "data": {"order": 7}}
        return _envelope(OTHER, "An event that a task publishes without a class.", kind, data, example, Storage.ALL)

    def _other_frame(self, content: dict[str, Any]) -> dict[str, Any]:
        event = {"not": {"enum": self.vocabulary.names}}
        return {"title": "any other", "required": ["id"], "properties": {"event": event, "data": content}}


def share_event_schemas(app: FastAPI, schemas: EventSchemas) -> None:
    """Put the schemas of events into the ``components`` of the OpenAPI document of ``app``, and refer to them."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        document["components"]["schemas"] |= schemas.payloads
        for path in document["paths"].values():
            for operation in path.values():
                content = operation["responses"].get("200", {}).get("content", {})
                if "itemSchema" in content.get(MEDIA_TYPE, {}):
                    content[MEDIA_TYPE]["itemSchema"] = schemas.frame(refer_to="#/components/schemas/")
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def data_schema(model: type[EventModel]) -> dict[str, Any]:
    """Return the JSON Schema of the data of a class, with nested schemas inlined."""
    try:
        schema = model.model_json_schema(mode="serialization", schema_generator=_WithoutTitles)
    except PydanticInvalidForJsonSchema as error:
        raise TypeError(f"the data of {model.__qualname__} has no JSON Schema: {error.message}") from error
    defined = schema.pop("$defs", {})
    for name in ("title", "description"):
        schema.pop(name, None)
    shown: dict[str, Any] = _inlined(schema, defined, model, ())
    return shown


def _inlined(schema: Any, defined: Mapping[str, Any], model: type[BaseModel], within: tuple[str, ...]) -> Any:
    """Replace each reference by its schema: neither document has room for definitions."""
    if isinstance(schema, list):
        return [_inlined(item, defined, model, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    name = str(schema.pop("$ref", "")).removeprefix("#/$defs/")
    if name in within:
        raise TypeError(f"the data of {model.__qualname__} is recursive ({name}); describe an event by flat data")
    found = _inlined(defined[name], defined, model, (*within, name)) if name else {}
    return {**found, **{key: _inlined(value, defined, model, within) for key, value in schema.items()}}


def _payload(model: type[EventModel]) -> dict[str, Any]:
    kind = {"type": "string", "const": model.event_type}
    example = {**_EXAMPLE, "type": model.event_type, "data": example_of(model)}
    if model.event_storage is Storage.NONE:
        example["id"] = None
    if model.event_publisher is Publisher.STREAM:
        return _notice(model, kind, example)
    return _envelope(model.__name__, meaning_of(model), kind, data_schema(model), example, model.event_storage)


def _envelope(
    title: str, meaning: str, kind: dict[str, Any], data: dict[str, Any], example: dict[str, Any], storage: Storage
) -> dict[str, Any]:
    """Return the schema of a job's event, with the names of CloudEvents 1.0."""
    subject = {"type": "string", "description": "the id of the job"}
    if storage is Storage.OF_JOBS:
        subject["description"] += "; empty where the event is not about a job"
    properties = {"id": _id(storage), "type": kind, "time": _TIME, "subject": subject, **_OF_JOB, "data": data}
    return _object(title, meaning, properties, example)


def _notice(model: type[EventModel], kind: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a notice about the stream itself, with the reason on the top level."""
    data = data_schema(model)
    subject = {
        "type": ["string", "null"],
        "description": "the id of the job of this stream; null for a stream of several jobs",
    }
    reason = data["properties"]["reason"]
    properties = {
        "id": _id(Storage.NONE), "type": kind, "time": _TIME, "subject": subject, "reason": reason, "data": data
    }  # fmt: skip
    shown = {name: example.get(name, example["data"].get(name)) for name in properties}
    return _object(model.__name__, meaning_of(model), properties, shown)


def _object(title: str, meaning: str, properties: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "description": meaning,
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "examples": [{name: example[name] for name in properties}],
    }


def _id(storage: Storage) -> dict[str, Any]:
    meaning = "`<epoch>-<seq>`: the epoch names the database, `seq` counts all its events in the order of their commits"
    stored = {"type": "string", "pattern": _ID, "description": meaning}
    match storage:
        case Storage.ALL:
            return stored
        case Storage.NONE:
            return {"type": "null", "description": "the event is not stored"}
        case Storage.OF_JOBS:
            return {
                **stored,
                "type": ["string", "null"],
                "description": "null where the event is not about a job, and not stored",
            }


_TIME: Final = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC"}


def _frame_of(model: type[EventModel], content: dict[str, Any]) -> dict[str, Any]:
    """Return the branch for one event type: a frame has an ``id`` if the event is stored."""
    event = {"const": model.event_type}
    branch: dict[str, Any] = {"title": model.event_type, "properties": {"event": event, "data": content}}
    if model.event_storage is Storage.ALL:
        branch["required"] = ["id"]
    elif model.event_storage is Storage.NONE and model.event_publisher is not Publisher.STREAM:
        branch["not"] = {"required": ["id"]}
    return branch


class _WithoutTitles(GenerateJsonSchema):
    """A generator without titles: they only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002, RUF100 - pydantic's signature
        """Return False for every schema."""
        return False
