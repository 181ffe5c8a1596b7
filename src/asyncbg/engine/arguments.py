"""The typed arguments of a task: validated by pydantic against its signature, stored as a JSON object."""

import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum
from types import GenericAlias
from typing import Any, Literal, NotRequired, Required, Union, cast, get_args, get_origin

import pydantic
from pydantic_core import to_json
from typing_extensions import TypedDict

from asyncbg.core.stored_arguments import OversizeError, StoredArguments
from asyncbg.core.validation_errors import clean_error
from asyncbg.engine.dependencies import NO_OVERRIDES, Dependencies, Overrides, signature_of
from asyncbg.errors import (
    ArgumentsError,
    ErrorItem,
    OversizeArgumentsError,
)
from asyncbg.privacy import Personal
from asyncbg.privacy.marks import EVERY, RESULT, Mark, mark_of

EXTRA_POSITIONAL = "*"
EXTRA_KEYWORD = "**"
_LITERALS = (str, int, bool, bytes, Enum)
_PLAIN = (str, int, bool)
"""Types whose JSON always reads back as the same value, except numbers of more than 4,300 digits."""
_LONGEST_NUMBER = 4300
_MAX_BYTES = 1024 * 1024
_CONFIG = pydantic.ConfigDict(
    extra="forbid",
    arbitrary_types_allowed=True,
    ser_json_bytes="base64",
    val_json_bytes="base64",
    ser_json_inf_nan="strings",
    hide_input_in_errors=True,
)


class Arguments:
    """The arguments a function takes from a job, validated by pydantic and kept as a JSON object.

    Dependencies and ``Progress`` parameters are not included: they are supplied when the task runs. ``*args`` are
    stored under the name ``*``, ``**kwargs`` under ``**``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Read the signature of ``function``."""
        signature = signature_of(function)
        self.dependencies = Dependencies(signature)
        self._unmet = self.dependencies.unmet()
        self.positional: list[str] = []
        self.names: set[str] = set()
        self.injected: set[str] = set()
        self.extra_positional = self.extra_keyword = False
        self._ordered: list[str] = []
        self._positional_only: list[str] = []
        self._defaults: dict[str, Any] = {}
        self._fields: dict[str, Any] = {}
        for parameter in signature.parameters.values():
            self._add(parameter)
        self.marks = _marks(signature)
        """Which arguments are personal, by parameter; for the result, under ``return``."""
        self.personal = json.dumps(self.marks)
        self._adapter = _adapter(self._fields)
        self._validate_python = self._adapter.validator.validate_python
        self._stored = StoredArguments(self._adapter.core_schema)
        self._is_direct = not (self._positional_only or self.extra_positional or self.extra_keyword)
        self._is_plain = all(map(_is_plain, self._fields.values())) and not self.injected

    def _add(self, parameter: inspect.Parameter) -> None:
        name, kind, annotation = parameter.name, parameter.kind, parameter.annotation
        if kind is inspect.Parameter.VAR_POSITIONAL:
            self.extra_positional = True
            self._fields[EXTRA_POSITIONAL] = NotRequired[GenericAlias(list, (annotation,))]
            return
        if kind is inspect.Parameter.VAR_KEYWORD:
            self.extra_keyword = True
            self._fields[EXTRA_KEYWORD] = NotRequired[GenericAlias(dict, (str, annotation))]
            return
        is_required = parameter.default is inspect.Parameter.empty
        if not is_required:
            self._defaults[name] = parameter.default
        if kind is not inspect.Parameter.KEYWORD_ONLY:
            self._ordered.append(name)
        if kind is inspect.Parameter.POSITIONAL_ONLY:
            self._positional_only.append(name)
        if name in self.dependencies.names:
            self.injected.add(name)
            return
        self._fields[name] = Required[annotation] if is_required else NotRequired[_or_default(annotation, parameter)]
        if kind is not inspect.Parameter.KEYWORD_ONLY:
            self.positional.append(name)
        if kind is not inspect.Parameter.POSITIONAL_ONLY:
            self.names.add(name)

    def bind(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Match arguments to parameters and validate them. A dependency may be passed by name. Raise ArgumentsError."""
        bound = dict(zip(self.positional, args, strict=False))
        given: dict[str, Any] = {}
        if len(args) > len(self.positional):
            if not self.extra_positional:
                raise ArgumentsError(task, [_too_many(len(self.positional), len(args))])
            bound[EXTRA_POSITIONAL] = list(args[len(self.positional) :])
        for name, value in kwargs.items():
            if name in self.names:
                if name in bound:
                    raise ArgumentsError(task, [_item(name, "given twice", "multiple_argument_values")])
                bound[name] = value
            elif name in self.injected:
                given[name] = value
            elif self.extra_keyword:
                bound.setdefault(EXTRA_KEYWORD, {})[name] = value
            else:
                raise ArgumentsError(
                    task, [_item(name, "the task takes no such argument", "unexpected_keyword_argument")]
                )
        valid = self.validate(task, bound)
        return {**valid, **given} if given else valid

    def validate(self, task: str, bound: Mapping[str, Any]) -> dict[str, Any]:
        """Validate arguments by name. Raise ArgumentsError, whose message contains no value."""
        return _checked(self._validate_python, bound, task)

    def require_met(self, task: str, given: Collection[str], overrides: Overrides = NO_OVERRIDES) -> None:
        """Raise ArgumentsError if a provider needs a request and its parameter is not in ``given``."""
        if self._unmet or overrides:
            unmet = self.dependencies.unmet(overrides) if overrides else self._unmet
            if not unmet.keys() <= set(given):
                raise ArgumentsError(task, [_unmet(*item) for item in unmet.items() if item[0] not in given])

    def dump(self, bound: dict[str, Any], *, task: str = "", max_bytes: int = _MAX_BYTES) -> str | None:
        """Return JSON text that reads back as the same values, None if there is none.

        Raise OversizeArgumentsError if the text is longer than ``max_bytes``.
        """
        try:
            if self._is_plain and len(text := to_json(bound)) < min(_LONGEST_NUMBER, max_bytes):
                return text.decode()
            if not self.injected.isdisjoint(bound) or any(isinstance(value, Iterator) for value in bound.values()):
                return None
            return self._stored.dump(bound, max_bytes)
        except OversizeError as error:
            size = error.size
        except Exception:  # noqa: BLE001 - the arguments' own serializers may raise anything
            return None
        raise OversizeArgumentsError(task, size, max_bytes)

    def load(self, task: str, text: str) -> dict[str, Any]:
        """Return stored arguments, without validating them again.

        Raise ArgumentsError if the function, or a type of its parameters, has changed meanwhile.
        """
        try:
            return _checked(self._stored.load, text, task)
        except ArgumentsError:
            raise
        except Exception as error:  # noqa: BLE001 - the types' own code may raise anything
            kind = type(error).__name__
        raise ArgumentsError(task, [{"loc": [], "msg": f"cannot be rebuilt ({kind})", "type": "rebuild"}])

    def spread(self, bound: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments of the call."""
        if self._is_direct:
            return [], dict(bound)
        kwargs = dict(bound)
        extra_keyword = kwargs.pop(EXTRA_KEYWORD, {})
        extra = kwargs.pop(EXTRA_POSITIONAL, ())
        leading = self._ordered if extra else self._positional_only
        while leading and not extra and leading[-1] not in kwargs:
            leading = leading[:-1]
        args = [kwargs.pop(name) if name in kwargs else self._defaults[name] for name in leading]
        return [*args, *extra], {**kwargs, **extra_keyword}


_arguments: OrderedDict[Any, tuple[Callable[[Any], bool], Arguments]] = OrderedDict()


def arguments_of(function: Callable[..., Any]) -> Arguments:
    """Return the arguments of a function; the last 1,000 are cached, closures of one definition once."""
    code, inner = getattr(function, "__code__", None), inspect.unwrap(function)
    if code is None or hasattr(function, "__signature__"):
        return Arguments(function)
    key = (code, getattr(inner, "__code__", None), inspect.ismethod(function))
    has_same_traits, arguments = _arguments.get(key, (None, None))
    if arguments is None or has_same_traits is None or not has_same_traits(inner):
        arguments = Arguments(function)
        _arguments[key] = (_same_traits_as(inner), arguments)
        while len(_arguments) > 1000:
            _arguments.popitem(last=False)
    return arguments


def _same_traits_as(function: Callable[..., Any]) -> Callable[[Any], bool]:
    """Return a predicate: whether a function of the same code has equal annotations and identical defaults."""
    annotations, defaults = getattr(function, "__annotations__", {}), _defaults(function)

    def has_same(other: Any) -> bool:
        others = _defaults(other)
        return (
            len(others) == len(defaults)
            and all(one is another for one, another in zip(defaults, others, strict=True))
            and getattr(other, "__annotations__", {}) == annotations
        )

    return has_same


def _defaults(function: Any) -> list[Any]:
    keyword_only = getattr(function, "__kwdefaults__", None) or {}
    return [*(getattr(function, "__defaults__", None) or ()), *keyword_only, *keyword_only.values()]


def _marks(signature: inspect.Signature) -> dict[str, Mark]:
    """Return what a function's annotations mark as personal; ``*args`` and ``**kwargs`` are marked by item."""
    marks: dict[str, Mark] = {}
    for name, parameter in signature.parameters.items():
        mark = mark_of(parameter.annotation)
        if mark is None:
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            marks[EXTRA_POSITIONAL] = {EVERY: mark}
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            marks[EXTRA_KEYWORD] = {EVERY: mark}
        else:
            marks[name] = mark
    result = mark_of(signature.return_annotation)
    return marks if result is None else {**marks, RESULT: result}


def _adapter(fields: dict[str, Any]) -> pydantic.TypeAdapter[Any]:
    """Return a validator for these fields; a field of a type unknown to pydantic accepts any value."""
    try:
        return _build(fields)
    except (pydantic.PydanticSchemaGenerationError, pydantic.PydanticUserError, NameError):
        return _build({name: hint if _is_known(name, hint) else get_origin(hint)[Any] for name, hint in fields.items()})


def _build(fields: dict[str, Any]) -> pydantic.TypeAdapter[Any]:
    shape = cast(Any, TypedDict)("arguments", fields)  # built from a signature, so not a literal
    shape.__pydantic_config__ = _CONFIG
    return pydantic.TypeAdapter(shape)


def _is_known(name: str, hint: Any) -> bool:
    try:
        _build({name: hint})
    except (pydantic.PydanticSchemaGenerationError, pydantic.PydanticUserError, NameError):
        return False
    return True


def _is_plain(hint: Any) -> bool:
    """Whether a field (``Required[…]``) is of a plain type, with no metadata that changes values."""
    inner = get_args(hint)[0]
    marks = getattr(inner, "__metadata__", ())
    if all(mark is Personal or isinstance(mark, Personal) for mark in marks):
        inner = get_args(inner)[0] if marks else inner
    return inner in _PLAIN


def _or_default(annotation: Any, parameter: inspect.Parameter) -> Any:
    """Return the annotation, extended by a default it does not allow: ``items: list = None``."""
    default = parameter.default
    if annotation is Any or _takes(annotation, default):
        return annotation
    if default is None:
        return Union[annotation, None]  # noqa: RUF100, UP007, UP045 - not everything that annotates has an |
    return Union[annotation, Literal[default]] if isinstance(default, _LITERALS) else annotation  # noqa: UP007


def _takes(annotation: Any, default: Any) -> bool:
    if isinstance(annotation, type) and type(default) is annotation:
        return True
    try:
        _build({"it": annotation}).validate_python({"it": default})
    except Exception:  # noqa: BLE001 - the annotation's own validators may raise anything
        return False
    return True


def _checked(check: Callable[[Any], Any], given: Any, task: str) -> dict[str, Any]:
    """Return ``check(given)``. Raise ArgumentsError.

    pydantic's error quotes its input, and Starlette's BaseHTTPMiddleware restores the context that ``from None``
    suppresses, so ours is raised outside the handler.
    """
    try:
        valid: dict[str, Any] = check(given)
    except pydantic.ValidationError as error:
        items = _items(error)
    else:
        return valid
    raise ArgumentsError(task, items)


def _items(error: pydantic.ValidationError) -> list[ErrorItem]:
    return [clean_error(item) for item in error.errors(include_url=False, include_context=False)]


def _item(name: str, msg: str, error_type: str) -> ErrorItem:
    return {"loc": [name], "msg": msg, "type": error_type}


def _unmet(name: str, missing: str) -> ErrorItem:
    return _item(name, f"its provider needs {missing!r}, which only a request has", "unmet_dependency")


def _too_many(most: int, given: int) -> ErrorItem:
    msg = f"takes {most} positional arguments, {given} were given"
    return {"loc": [], "msg": msg, "type": "unexpected_positional_argument"}
