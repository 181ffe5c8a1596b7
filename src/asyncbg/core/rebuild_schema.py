"""Schemas for storing validated values: pydantic's schema without a second validation.

A second validation could fail a job for an accepted value: a time that was in the future, a file that existed. So
checks of the clock and the file system, and the user's own validators, are removed from the schema.
"""

from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any, cast
from zoneinfo import ZoneInfo

from pydantic_core import (
    CoreConfig,
    CoreSchema,
    PydanticSerializationUnexpectedValue,
    SchemaSerializer,
    SchemaValidator,
    TzInfo,
)

_INNER = (
    "schema", "items_schema", "keys_schema", "values_schema", "lax_schema", "strict_schema", "json_schema",
    "python_schema", "extras_schema", "extras_keys_schema", "arguments_schema", "var_args_schema", "var_kwargs_schema",
    "steps", "choices", "fields", "definitions",
)  # fmt: skip
_FUNCTIONS = ("function-before", "function-after", "function-wrap", "function-plain")
_KEPT = ("serialization", "ref", "metadata")
_LOOKS_AT_FILES = "PathType."
_NOW = ("now_op", "now_utc_offset")
_MAKES_A_TYPE = "__get_pydantic_core_schema__"
_WITH_CONFIG = ("model", "dataclass", "typed-dict")
_CONFIG = CoreConfig(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")


def rebuild_schema(schema: CoreSchema, *, keep_validators: bool) -> CoreSchema:
    """Return ``schema`` without checks of clock and file system, and without user validators unless they are kept.

    A datetime is written with the name of its zone (RFC 9557) and read back with it.
    """
    return cast(CoreSchema, _Rebuilding(keep_validators).walk(schema))


def has_dynamic_defaults(schema: Any) -> bool:
    """Whether the schema has a default factory anywhere."""
    if isinstance(schema, dict):
        if "default_factory" in schema:
            return True
        return any(has_dynamic_defaults(value) for key, value in schema.items() if key in _INNER or _is_mapping(schema))
    return isinstance(schema, list | tuple) and any(map(has_dynamic_defaults, schema))


def validator_of(schema: CoreSchema) -> SchemaValidator:
    """The validator of a changed schema: nothing of what its classes have built themselves is used."""
    try:
        return SchemaValidator(schema, _CONFIG, _use_prebuilt=False)
    except TypeError:  # an older pydantic, which never uses prebuilt ones
        return SchemaValidator(schema, _CONFIG)


def serializer_of(schema: CoreSchema) -> SchemaSerializer:
    """The serializer of a changed schema."""
    try:
        return SchemaSerializer(schema, _CONFIG, _use_prebuilt=False)
    except TypeError:
        return SchemaSerializer(schema, _CONFIG)


class _Rebuilding:
    """Walks a schema down, by those of its keys that hold schemas."""

    def __init__(self, keep_validators: bool) -> None:
        self._keep_validators = keep_validators

    def walk(self, node: Any) -> Any:
        if isinstance(node, list | tuple):
            return type(node)(map(self.walk, node))
        if not isinstance(node, dict):
            return node
        if _is_mapping(node):
            return {name: self.walk(value) for name, value in node.items()}
        node = {key: self.walk(value) if key in _INNER else value for key, value in node.items()}
        if node["type"] in _FUNCTIONS:
            return node if self._is_needed(node["function"]["function"]) else _without_function(node)
        if node["type"] in _WITH_CONFIG:
            return {**node, "config": {**node.get("config", {}), **_CONFIG}}
        if node["type"] in ("datetime", "date"):
            node = {key: value for key, value in node.items() if key not in _NOW}
        return _with_zone(node) if node["type"] == "datetime" else node

    def _is_needed(self, function: Callable[..., Any]) -> bool:
        """Whether it makes a value of its type, as pydantic's own functions do, and classes."""
        while isinstance(function, partial):
            function = function.func
        name = getattr(function, "__qualname__", "")
        if name.startswith(_LOOKS_AT_FILES):
            return False
        module = (getattr(function, "__module__", None) or "").partition(".")[0]
        is_pydantic = module in ("pydantic", "pydantic_core")
        return self._keep_validators or is_pydantic or isinstance(function, type) or _MAKES_A_TYPE in name


def _is_mapping(node: dict[str, Any]) -> bool:
    """Whether it maps names to schemas: there ``type`` is a field's name."""
    return not isinstance(node.get("type"), str)


def _without_function(node: dict[str, Any]) -> dict[str, Any]:
    inner = node.get("schema", {"type": "any"})
    kept = {key: node[key] for key in _KEPT if key in node}
    return {"type": "chain", "steps": [inner], **kept} if kept else inner


def _with_zone(node: dict[str, Any]) -> dict[str, Any]:
    kept = {key: node.pop(key) for key in _KEPT if key in node}
    serialization = {"type": "function-plain", "function": _write_datetime, "when_used": "json"}
    function = {"type": "no-info", "function": _read_datetime}
    return {"type": "function-wrap", "function": function, "schema": node, "serialization": serialization, **kept}


def _write_datetime(value: object) -> str:
    if not isinstance(value, datetime):
        raise PydanticSerializationUnexpectedValue("not a datetime")
    text = value.isoformat()
    text = f"{text[:-6]}Z" if text.endswith("+00:00") else text
    key = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else None
    return f"{text}[{key}]" if key else text


def _read_datetime(value: object, read: Callable[[object], datetime]) -> datetime:
    if isinstance(value, str) and value.endswith("]"):
        text, _, key = value[:-1].rpartition("[")
        moment = datetime.fromisoformat(text)
        local = moment.replace(tzinfo=ZoneInfo(key))
        return local if local.utcoffset() == moment.utcoffset() else local.replace(fold=1)
    moment = read(value)
    offset = moment.utcoffset() if isinstance(moment.tzinfo, TzInfo) else None
    return moment if offset is None else moment.replace(tzinfo=timezone(offset))
