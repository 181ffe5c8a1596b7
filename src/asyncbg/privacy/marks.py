"""Privacy by type: which parts of a value are marked as personal by its annotation, and their redaction.

A mark is a kind (all of the value is personal: ``"email"``) or says where in the value others are:
``{"customer": {"email": "email"}, "guests": {"*": {"name": "personal"}}}``; ``*`` is every item. Marks are JSON, so
they are stored with a job, which can be shown without its task and types.
"""

import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin

import typing_extensions
from pydantic import BaseModel, RootModel

from asyncbg.privacy.patterns.redaction import redact, redact_json
from asyncbg.privacy.pseudonyms import mask

Mark = str | Mapping[str, "Mark"]
EVERY = "*"
RESULT = "return"
"""The name of the result among the marks of the parameters; no parameter can have it."""

_UNNAMED = "personal"
_SHORTEST = {str: 3, int: 6}
"""Shorter values may be common words or counts, and are not searched for in texts."""
_MOST_VALUES = 1_000


class Personal:
    """Marks a parameter or a field as personal: ``Annotated[str, Personal("email")]``, or just ``Personal``."""

    __slots__ = ("kind",)

    def __init__(self, kind: str = "personal") -> None:
        """``kind`` names what it is in the pseudonym: ``[email:ab12cd34]``; a ``secret`` gets no pseudonym at all."""
        self.kind = kind

    def __repr__(self) -> str:
        """As written in an annotation."""
        return f"Personal({self.kind!r})"


def mark_of(annotation: Any) -> Mark | None:
    """Return the marks of a type: ``Personal`` on it, or anywhere in its fields and items; None: nothing is personal.

    A recursive type is marked down to its first recurrence; from there on the whole value is personal.
    """
    first = _Reader(again=None)
    mark = first.read(annotation)
    return mark if mark is None or not first.came_again else _Reader(again=_UNNAMED).read(annotation)


class _Reader:
    """A walk through an annotation; ``again`` is the mark of a recurring class."""

    def __init__(self, again: Mark | None) -> None:
        self.came_again = False
        self._again = again
        self._open: set[Any] = set()

    def read(self, annotation: Any) -> Mark | None:
        annotation = _unwrapped(annotation)
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is typing.Annotated:
            return _own(annotation.__metadata__) or self.read(inner[0])
        if origin in (Union, types.UnionType):
            return _merged(map(self.read, inner))
        if origin is tuple and inner[-1:] != (...,):
            return _named((str(place), self.read(item)) for place, item in enumerate(inner))
        kind = origin if isinstance(origin, type) else annotation
        if not isinstance(kind, type):
            return _merged(map(self.read, inner))  # Required[…], Final[…]
        fields = list(_fields(kind))
        if fields:
            return self._read_fields(kind, fields)
        if issubclass(kind, Mapping) and len(inner) == 2:
            key = self.read(inner[0])
            return _named([(EVERY, self.read(inner[1]))]) if key is None else _first_kind(key)
        items = _merged(self.read(item) for item in inner if item is not ...)
        return _named([(EVERY, items)]) if issubclass(kind, Iterable) else items

    def _read_fields(self, kind: Any, fields: Iterable[tuple[tuple[str, ...], Any]]) -> Mark | None:
        if kind in self._open:
            self.came_again = True
            return self._again
        self._open.add(kind)
        try:
            marks = [(names, self.read(annotation)) for names, annotation in fields]
        finally:
            self._open.discard(kind)
        if issubclass(kind, RootModel):
            return marks[0][1]
        return _named((name, mark) for names, mark in marks for name in names)


def masked(value: Any, mark: Mark | None, clean: Callable[[Any], Any] = redact_json) -> Any:
    """Return a JSON value with its personal parts as pseudonyms and the others through ``clean``."""
    if value is None:
        return None
    if isinstance(mark, str):
        return mask(value if isinstance(value, str) else json.dumps(value, sort_keys=True), mark)
    if not mark:
        return clean(value)
    if isinstance(value, dict):
        return {name: masked(item, mark.get(name, mark.get(EVERY)), clean) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(item, mark.get(str(at), mark.get(EVERY)), clean) for at, item in enumerate(value)]
    return clean(value)


def masked_arguments(args: Mapping[str, Any], marks: Mapping[str, Mark]) -> dict[str, Any]:
    """Return a job's arguments: marked ones as pseudonyms, the others redacted."""
    return {name: masked(value, marks.get(name)) for name, value in args.items()}


def masked_result(result: Any, marks: Mapping[str, Mark]) -> Any:
    """Return a job's result: unchanged where its type marks nothing."""
    mark = marks.get(RESULT)
    return result if mark is None else masked(result, mark)


class ArgumentRedactor:
    """The personal values of one job, which are replaced by pseudonyms wherever they occur in a text."""

    def __init__(self, args: Mapping[str, Any], marks: Mapping[str, Mark]) -> None:
        """Take a job's arguments (in Python or JSON form); they are inspected at the first text."""
        self._args = args
        self._marks = marks
        self._pseudonyms: dict[str, str] | None = None

    def clean(self, text: str) -> str:
        """Return ``text`` without the job's personal values, and without what looks personal or secret."""
        if not text:
            return text
        if self._pseudonyms is None:
            self._pseudonyms = self._learn()
        if any(value in text for value in self._pseudonyms):
            text = self._pattern(self._pseudonyms).sub(self._hide, text)
        return redact(text)

    def clean_json(self, value: Any) -> Any:
        """A JSON value with every text in it cleaned, keys too."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, list):
            return [self.clean_json(item) for item in value]
        if isinstance(value, dict):
            return {self.clean(name): self.clean_json(item) for name, item in value.items()}
        return value

    def _learn(self) -> dict[str, str]:
        found = [pair for name, value in self._args.items() for pair in _values(value, self._marks.get(name))]
        # As in a message, and as in the repr of something around it.
        return {
            spelling: mask(text, kind) for text, kind in found[:_MOST_VALUES] for spelling in (text, repr(text)[1:-1])
        }

    @staticmethod
    def _pattern(pseudonyms: Mapping[str, str]) -> re.Pattern[str]:
        longest_first = sorted(pseudonyms, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def _hide(self, match: re.Match[str]) -> str:
        return (self._pseudonyms or {})[match[0]]


def _values(value: Any, mark: Mark | None) -> Iterator[tuple[str, str]]:
    """Yield every marked text and number, with its kind."""
    if not mark or value is None:
        return
    if isinstance(value, BaseModel):
        value = value.model_dump()
    elif is_dataclass(value):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _values(item, mark if isinstance(mark, str) else mark.get(str(name), mark.get(EVERY)))
    elif isinstance(value, list | tuple | set | frozenset):
        for at, item in enumerate(value):
            yield from _values(item, mark if isinstance(mark, str) else mark.get(str(at), mark.get(EVERY)))
    elif isinstance(mark, str) and len(text := str(value)) >= _SHORTEST.get(type(value), 3):
        yield text, mark


def _unwrapped(annotation: Any) -> Any:
    """Resolve type aliases and ``NewType``."""
    while True:
        if isinstance(annotation, typing_extensions.TypeAliasType):
            annotation = annotation.__value__
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        else:
            return annotation


def _fields(kind: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The fields of a model, dataclass, typed dictionary or named tuple: the names each has in JSON, its annotation."""
    pydantic_fields = getattr(kind, "__pydantic_fields__", None)
    if pydantic_fields is not None:
        if issubclass(kind, BaseModel):
            kind.model_rebuild(raise_errors=False)
            pydantic_fields = kind.__pydantic_fields__
        for name, field in pydantic_fields.items():
            names = (name, field.alias, field.serialization_alias)
            annotation = typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            yield tuple(dict.fromkeys(one for one in names if isinstance(one, str))), annotation
        for name, computed in getattr(kind, "model_computed_fields", {}).items():
            yield (name, computed.alias or name), computed.return_type
        return
    is_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    if not (is_tuple or is_dataclass(kind) or typing_extensions.is_typeddict(kind)):
        return
    try:
        hints = typing_extensions.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):
        hints = dict(getattr(kind, "__annotations__", {}))
    for at, name in enumerate(kind._fields if is_tuple else hints):
        yield ((name, str(at)) if is_tuple else (name,)), hints.get(name, Any)


def _own(metadata: Iterable[Any]) -> str | None:
    """The kind that ``Annotated[…, Personal("kind")]`` names."""
    for extra in metadata:
        if isinstance(extra, Personal):
            return extra.kind
        if extra is Personal:
            return _UNNAMED
    return None


def _named(marks: Iterable[tuple[str, Mark | None]]) -> Mark | None:
    found = {name: mark for name, mark in marks if mark is not None}
    return found or None


def _merged(marks: Iterable[Mark | None]) -> Mark | None:
    """Return the mark of a union: whatever any of its types marks."""
    merged: Mark | None = None
    for mark in marks:
        if merged is None or isinstance(mark, str):
            merged = mark if mark is not None else merged
        elif mark is not None and not isinstance(merged, str):
            names = [*merged, *(name for name in mark if name not in merged)]
            merged = _named((name, _merged((merged.get(name), mark.get(name)))) for name in names)
        if isinstance(merged, str):
            return merged
    return merged


def _first_kind(mark: Mark) -> str:
    return mark if isinstance(mark, str) else _first_kind(next(iter(mark.values())))
