"""Holding what a service sends against what its documents say: /openapi.json and /asyncapi.json, by JSON Schema."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

_FIELD = re.compile(r"(\w+): ?(.*)")


def follow(document: dict[str, Any], reference: str) -> Any:
    """What a local reference (``#/…``, RFC 6901) leads to. Raises KeyError where that is nothing."""
    assert reference.startswith("#/"), reference
    found: Any = document
    for part in reference[2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def references(node: Any) -> Iterator[str]:
    """Every ``$ref`` in a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def closed(document: dict[str, Any], node: Any) -> Any:
    """A schema with its references followed, that takes no member it does not name: what is sent must be described."""
    if isinstance(node, list):
        return [closed(document, item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        node = follow(document, node["$ref"])
    shown = {name: closed(document, value) for name, value in node.items()}
    if shown.get("type") == "object" and "properties" in shown:
        shown.setdefault("additionalProperties", False)
    return shown


def errors(schema: dict[str, Any], value: Any) -> list[str]:
    """What is wrong with a value."""
    validator = Draft202012Validator(schema, format_checker=FormatChecker())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def frames(text: str) -> list[dict[str, Any]]:
    """The frames of a stream that have data, each by its fields (WHATWG HTML, section 9.2.6)."""
    found = []
    for block in text.split("\n\n"):
        named = {match[1]: match[2] for match in map(_FIELD.fullmatch, block.split("\n")) if match}
        if "data" in named:
            found.append({**named, **({"retry": int(named["retry"])} if "retry" in named else {})})
    return found


@dataclass
class Documents:
    """The two documents of one service; :meth:`check` holds frames against both, and keeps which types it met."""

    openapi: dict[str, Any]
    asyncapi: dict[str, Any]
    met: set[str] = field(default_factory=set)

    def check(self, channel: str, sent: list[dict[str, Any]]) -> None:
        """Every frame is as OpenAPI says of the stream's path, and is exactly one of the messages of its channel."""
        described = self.asyncapi["channels"][channel]
        item = self._item_schema(described["address"])
        messages = {
            name: closed(self.asyncapi, message)
            for name, message in closed(self.asyncapi, described)["messages"].items()
        }
        for frame in sent:
            self.met.add(frame["event"])
            assert errors(item, frame) == [], frame
            told, headers = json.loads(frame["data"]), {name: value for name, value in frame.items() if name != "data"}
            content = content_schema(item, frame["event"])
            assert errors(content, told) == [], frame
            fitting = [
                name
                for name, message in messages.items()
                if not errors(message["payload"], told) and not errors(message["headers"], headers)
            ]
            assert len(fitting) == 1, (fitting, frame)

    def _item_schema(self, path: str) -> dict[str, Any]:
        answer = self.openapi["paths"][path]["get"]["responses"]["200"]
        schema = closed(self.openapi, answer["content"]["text/event-stream"]["itemSchema"])
        assert isinstance(schema, dict)
        return schema


def content_schema(item: dict[str, Any], event: str) -> dict[str, Any]:
    """What an ``itemSchema`` says of the JSON in ``data:`` of one type of event."""
    [branch] = [one for one in item["oneOf"] if not errors(one["properties"]["event"], event)]
    content = branch["properties"]["data"]
    assert content["contentMediaType"] == "application/json"
    schema = content["contentSchema"]
    assert isinstance(schema, dict)
    return schema
