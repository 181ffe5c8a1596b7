"""Arguments as they are stored: JSON that reads back as the same values, with a note where JSON alone does not say all.

The note is the last member of the object, under a name that no parameter can have. It says which fields of a model
were never set, and whether the user's own validators are needed to make the values again.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel
from pydantic_core import CoreSchema, SchemaSerializer, SchemaValidator

from asyncbg.core.rebuild_schema import has_dynamic_defaults, rebuild_schema, serializer_of, validator_of
from asyncbg.core.same_value import is_same
from asyncbg.core.stored_text import load_json

_NOTE = "$"
_NOTE_BEGINS = f',"{_NOTE}":{{'


def shown_arguments(text: str) -> dict[str, Any]:
    """Return stored arguments as JSON values by parameter, without the note. Never raises."""
    found = load_json(text)
    arguments: dict[str, Any] = found if isinstance(found, dict) else {}
    arguments.pop(_NOTE, None)
    return arguments


class StoredArguments:
    """Writes and reads the arguments of one signature. Nothing is built before the first use."""

    def __init__(self, schema: CoreSchema) -> None:
        """``schema`` is that of the object of all arguments."""
        self._schema = schema

    def dump(self, bound: Mapping[str, Any], most_bytes: int) -> str | None:
        """Return the text that :meth:`load` reads back as the same values; None: no such text exists.

        Raises OversizeError, and whatever the values' own serializers and validators raise.
        """
        if not self._has_dynamic_defaults:
            text = self._write(bound, most_bytes, exclude_unset=True)
            if self._reads_back(text, bound):
                return text
        text = self._write(bound, most_bytes, exclude_unset=False)
        unset = [[list(path), names] for path, names in _unset_fields(bound, ())]
        for needs_validators in (False, True):
            noted = _with_note(text, unset, needs_validators)
            if self._reads_back(noted, bound):
                return noted
        return None

    def load(self, text: str) -> dict[str, Any]:
        """Read arguments back. Raises pydantic.ValidationError where they do not fit the signature."""
        text, note = _split(text)
        validator = self._validating if note.get("validators") else self._rebuilding
        bound: dict[str, Any] = validator.validate_json(text)
        for path, names in note.get("unset", ()):
            _at(bound, path).__pydantic_fields_set__.difference_update(names)
        return bound

    def _write(self, bound: Mapping[str, Any], most_bytes: int, *, exclude_unset: bool) -> str:
        text = self._serializer.to_json(
            bound, round_trip=True, by_alias=True, exclude_unset=exclude_unset, warnings="error"
        )
        if len(text) > most_bytes:
            raise OversizeError(len(text))
        return text.decode()

    def _reads_back(self, text: str, bound: Mapping[str, Any]) -> bool:
        try:
            return is_same(self.load(text), bound)
        except Exception:  # noqa: BLE001 - what the values' own code raises: then there is another way, or none
            return False

    @cached_property
    def _has_dynamic_defaults(self) -> bool:
        return has_dynamic_defaults(self._schema)

    @cached_property
    def _serializer(self) -> SchemaSerializer:
        return serializer_of(rebuild_schema(self._schema, keep_validators=False))

    @cached_property
    def _rebuilding(self) -> SchemaValidator:
        return validator_of(rebuild_schema(self._schema, keep_validators=False))

    @cached_property
    def _validating(self) -> SchemaValidator:
        return validator_of(rebuild_schema(self._schema, keep_validators=True))


class OversizeError(Exception):
    """The text exceeds the limit; ``size`` is its length in bytes."""

    def __init__(self, size: int) -> None:
        """Keep the size."""
        super().__init__(size)
        self.size = size


def _with_note(text: str, unset: list[Any], needs_validators: bool) -> str:
    note = {**({"unset": unset} if unset else {}), **({"validators": True} if needs_validators else {})}
    if not note:
        return text
    return f"{text[:-1]}{_NOTE_BEGINS}{json.dumps(note, separators=(',', ':'))[1:]}}}"


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """The arguments and their note. In a value, what looks like a note is followed by more than the object's end."""
    begins = text.rfind(_NOTE_BEGINS)
    if begins < 0:
        return text, {}
    try:
        note: dict[str, Any] = json.loads(text[begins + len(_NOTE_BEGINS) - 1 : -1])
    except ValueError:
        return text, {}
    return f"{text[:begins]}}}", note


def _unset_fields(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], list[str]]]:
    """Where in a value there are models with fields that were never set, and those fields' names."""
    if isinstance(value, BaseModel) and (unset := sorted(set(type(value).model_fields) - value.model_fields_set)):
        yield path, unset
    for step, item in _items(value):
        yield from _unset_fields(item, (*path, step))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, BaseModel):
        yield from {**value.__dict__, **(value.__pydantic_extra__ or {})}.items()
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif is_dataclass(value) and hasattr(value, "__dict__"):
        yield from vars(value).items()


def _at(value: Any, path: list[Any]) -> Any:
    for step in path:
        value = dict(_items(value))[step]
    return value
