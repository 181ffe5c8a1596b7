"""The JSON Schemas of events, made from their classes: of what ``data:`` carries, and of one frame of a stream."""

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
"""The name of the schema of whatever else a task publishes."""

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
    """The schemas of a vocabulary: of each class by its name, and an open one for what a task publishes without one.

    They are whole: none refers to another. Raises TypeError where data has no JSON Schema, or one that holds itself.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Make them when they are asked for. Raises ValueError where a class has the name of the open one."""
        if any(model.__name__ == OTHER for model in vocabulary):
            raise ValueError(f"the documents call what has no class {OTHER}; give your class another name")
        self.vocabulary = vocabulary

    @cached_property
    def payloads(self) -> Mapping[str, dict[str, Any]]:
        """The JSON that ``data:`` carries, for each class and for any other event of a task."""
        return {model.__name__: _payload(model) for model in self.vocabulary} | {OTHER: self._other()}

    def frame(self, *, refer_to: str = "") -> dict[str, Any]:
        """One frame of a stream as OpenAPI describes it: the ``itemSchema`` of ``text/event-stream``.

        With ``refer_to``, the payloads are referred to below that place: ``#/components/schemas/``. Otherwise they
        stand in it without their examples, whose nulls FastAPI would drop.
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
        data = {"type": "object", "description": "whatever the task gave"}
        example = {**_EXAMPLE, "type": "order.shipped", "data": {"order": 7}}
        return _envelope(OTHER, "Whatever else a task publishes.", kind, data, example, Storage.ALL)

    def _other_frame(self, content: dict[str, Any]) -> dict[str, Any]:
        event = {"not": {"enum": self.vocabulary.names}}
        return {"title": "any other", "required": ["id"], "properties": {"event": event, "data": content}}


def share_event_schemas(app: FastAPI, schemas: EventSchemas) -> None:
    """Let the OpenAPI document of ``app`` hold the schemas of events once, below ``components``, and refer to them."""
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
    """The JSON Schema of a class' data, with nested ones in their place."""
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
    """Put what is referred to in the place of the reference: neither document has a place for definitions of ours."""
    if isinstance(schema, list):
        return [_inlined(item, defined, model, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    name = str(schema.pop("$ref", "")).removeprefix("#/$defs/")
    if name in within:
        raise TypeError(f"the data of {model.__qualname__} holds itself ({name}); describe an event by flat data")
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
    """An event of a job, by the names of CloudEvents 1.0."""
    subject = {"type": "string", "description": "the id of the job"}
    if storage is Storage.OF_JOBS:
        subject["description"] += "; empty where it was none"
    properties = {"id": _id(storage), "type": kind, "time": _TIME, "subject": subject, **_OF_JOB, "data": data}
    return _object(title, meaning, properties, example)


def _notice(model: type[EventModel], kind: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """What a stream says of itself: of no job, with the reason where a glance finds it."""
    data = data_schema(model)
    subject = {"type": ["string", "null"], "description": "the id of the job whose stream this is, if it is one's"}
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
            return {"type": "null", "description": "it is not stored"}
        case Storage.OF_JOBS:
            return {**stored, "type": ["string", "null"], "description": "null where it is of no job, and not stored"}


_TIME: Final = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC"}


def _frame_of(model: type[EventModel], content: dict[str, Any]) -> dict[str, Any]:
    """One branch: known by ``event``; it carries an ``id`` if it is stored. Those of the stream itself tell more."""
    event = {"const": model.event_type}
    branch: dict[str, Any] = {"title": model.event_type, "properties": {"event": event, "data": content}}
    if model.event_storage is Storage.ALL:
        branch["required"] = ["id"]
    elif model.event_storage is Storage.NONE and model.event_publisher is not Publisher.STREAM:
        branch["not"] = {"required": ["id"]}
    return branch


class _WithoutTitles(GenerateJsonSchema):
    """A field's name is title enough."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002, RUF100 - pydantic's signature
        """Never."""
        return False
