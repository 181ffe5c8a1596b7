"""What a task is: a named function with options, its typed arguments as JSON, and the registry of all of them."""

import inspect
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, NotRequired, Required, Union, cast, get_args, get_origin

import pydantic
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from typing_extensions import TypedDict

from asyncbg.core.function_name import module_and_qualname
from asyncbg.core.json_text import dump_json, has_long_number
from asyncbg.core.plain_text import require_line
from asyncbg.core.retry import RetryPolicy
from asyncbg.core.stored_arguments import OversizeError, StoredArguments
from asyncbg.core.validation_errors import clean_error
from asyncbg.engine.dependencies import NO_OVERRIDES, Dependencies, Overrides, body_of, signature_of
from asyncbg.engine.unique_key import KeyOption, UniqueKey
from asyncbg.errors import (
    ArgumentsError,
    DuplicateTaskError,
    ErrorItem,
    InvalidTaskError,
    OptionsError,
    OversizeArgumentsError,
    ResultError,
    TaskChangedError,
    UnknownTaskError,
)
from asyncbg.privacy import Personal
from asyncbg.privacy.marks import EVERY, RESULT, Mark, mark_of

logger = logging.getLogger("asyncbg")

_MOST_RETRIES = 10_000
_LONGEST_TIMEOUT_S = 366 * 86_400
_HIGHEST_PRIORITY = 2**31 - 1
_MAIN = "__main__"
_EXTRA_POSITIONAL = "*"
_EXTRA_KEYWORD = "**"
_LITERALS = (str, int, bool, bytes, Enum)
_PLAIN = (str, int, bool)
"""What reads back as it was written, so that nothing need be tried: all but a number of more than 4,300 digits."""
_LONGEST_NUMBER = 4300
_MOST_BYTES = 1024 * 1024
_CONFIG = pydantic.ConfigDict(
    extra="forbid",
    arbitrary_types_allowed=True,
    ser_json_bytes="base64",
    val_json_bytes="base64",
    ser_json_inf_nan="strings",
    hide_input_in_errors=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How a task's jobs are run. ``timeout`` is seconds for one attempt; higher ``priority`` runs first."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    queue: str = "default"
    priority: int = 0
    key: KeyOption | None = None
    at_most_once: bool = False

    def __post_init__(self) -> None:
        """Raise OptionsError for what no task can have."""
        check_priority(self.priority)
        require_line("queue=", self.queue)
        if not _is_whole(self.retry.retries) or not 0 <= self.retry.retries <= _MOST_RETRIES:
            raise OptionsError("retries=", f"should be a whole number from 0 to {_MOST_RETRIES:,}")
        if self.timeout is not None and not (_is_number(self.timeout) and 0 < self.timeout <= _LONGEST_TIMEOUT_S):
            raise OptionsError("timeout=", "should be more than 0 seconds, at most a year; None is without end")


def check_priority(priority: object) -> None:
    """Raise OptionsError for what is no priority."""
    if not _is_whole(priority) or not -_HIGHEST_PRIORITY <= priority <= _HIGHEST_PRIORITY:  # type: ignore[operator]
        raise OptionsError("priority=", f"should be a whole number, at most {_HIGHEST_PRIORITY:,} either way")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Arguments:
    """The arguments a function takes from a job, validated by pydantic and kept as a JSON object.

    Dependencies and ``Progress`` parameters are left out: they are supplied when the task runs. ``*args`` stand under
    the name ``*`` and ``**kwargs`` under ``**``.
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
        """What of the arguments is personal, by parameter; what of the result is, under ``return``."""
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
            self._fields[_EXTRA_POSITIONAL] = NotRequired[GenericAlias(list, (annotation,))]
            return
        if kind is inspect.Parameter.VAR_KEYWORD:
            self.extra_keyword = True
            self._fields[_EXTRA_KEYWORD] = NotRequired[GenericAlias(dict, (str, annotation))]
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
        """Match arguments to parameters and validate them. A dependency may be given by name. Raises ArgumentsError."""
        bound = dict(zip(self.positional, args, strict=False))
        given: dict[str, Any] = {}
        if len(args) > len(self.positional):
            if not self.extra_positional:
                raise ArgumentsError(task, [_too_many(len(self.positional), len(args))])
            bound[_EXTRA_POSITIONAL] = list(args[len(self.positional) :])
        for name, value in kwargs.items():
            if name in self.names:
                if name in bound:
                    raise ArgumentsError(task, [_item(name, "given twice", "multiple_argument_values")])
                bound[name] = value
            elif name in self.injected:
                given[name] = value
            elif self.extra_keyword:
                bound.setdefault(_EXTRA_KEYWORD, {})[name] = value
            else:
                raise ArgumentsError(
                    task, [_item(name, "the task takes no such argument", "unexpected_keyword_argument")]
                )
        valid = self.validate(task, bound)
        return {**valid, **given} if given else valid

    def validate(self, task: str, bound: Mapping[str, Any]) -> dict[str, Any]:
        """Check an object of arguments by name. Raises ArgumentsError, which never shows a value."""
        return _checked(self._validate_python, bound, task)

    def require_met(self, task: str, given: Collection[str], overrides: Overrides = NO_OVERRIDES) -> None:
        """Raise ArgumentsError where a provider needs a request, and what it provides is not among the ``given``."""
        if self._unmet or overrides:
            unmet = self.dependencies.unmet(overrides) if overrides else self._unmet
            if not unmet.keys() <= set(given):
                raise ArgumentsError(task, [_unmet(*item) for item in unmet.items() if item[0] not in given])

    def dump(self, bound: dict[str, Any], *, task: str = "", most_bytes: int = _MOST_BYTES) -> str | None:
        """Return the JSON text that reads back as the very same values, None where there is none.

        Raises OversizeArgumentsError where the text is longer than ``most_bytes``.
        """
        try:
            if self._is_plain and len(text := to_json(bound)) < min(_LONGEST_NUMBER, most_bytes):
                return text.decode()
            if not self.injected.isdisjoint(bound) or any(isinstance(value, Iterator) for value in bound.values()):
                return None
            return self._stored.dump(bound, most_bytes)
        except OversizeError as error:
            size = error.size
        except Exception:  # noqa: BLE001 - also what the arguments' own serializers raise
            return None
        raise OversizeArgumentsError(task, size, most_bytes)

    def load(self, task: str, text: str) -> dict[str, Any]:
        """Read arguments back, without validating them anew.

        Raises ArgumentsError where the function, or a type it takes, has changed meanwhile.
        """
        try:
            return _checked(self._stored.load, text, task)
        except ArgumentsError:
            raise
        except Exception as error:  # noqa: BLE001 - what the types' own code raises after a deploy
            kind = type(error).__name__
        raise ArgumentsError(task, [{"loc": [], "msg": f"cannot be made again ({kind})", "type": "rebuild"}])

    def spread(self, bound: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Turn an object of arguments into the positional and keyword arguments of the call."""
        if self._is_direct:
            return [], dict(bound)
        kwargs = dict(bound)
        extra_keyword = kwargs.pop(_EXTRA_KEYWORD, {})
        extra = kwargs.pop(_EXTRA_POSITIONAL, ())
        leading = self._ordered if extra else self._positional_only
        while leading and not extra and leading[-1] not in kwargs:
            leading = leading[:-1]
        args = [kwargs.pop(name) if name in kwargs else self._defaults[name] for name in leading]
        return [*args, *extra], {**kwargs, **extra_keyword}


METHOD_REMEDY = (
    "its jobs have no object to pass as self; register a function of the module, or a @staticmethod, and let it make "
    "the object or take it by Depends"
)


@dataclass(frozen=True, slots=True, eq=False)
class TaskDefinition:
    """A registered task: its name, the function it runs, its options and its arguments."""

    name: str
    function: Callable[..., Any]
    options: TaskOptions
    arguments: Arguments
    is_async: bool
    key: UniqueKey | None
    is_method: bool = False
    """Whether it was registered inside a class: then nobody can give its jobs the object."""

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], options: TaskOptions) -> "TaskDefinition":
        """Define a task. Raises InvalidTaskError for what cannot be one, UniqueKeyError for a key that does not fit."""
        require_task(name, function)
        arguments, key = arguments_of(function), None
        if options.key is not None:
            key = UniqueKey(name, options.key, signature_of(function), injected=arguments.injected)
        return cls(name, function, options, arguments, is_async_callable(function), key)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Match arguments to parameters and validate them. Raises ArgumentsError; InvalidTaskError for a method."""
        if self.is_method:
            raise InvalidTaskError(self.name, f"it is the method {self.function.__qualname__}; {METHOD_REMEDY}")
        return self.arguments.bind(self.name, args, kwargs)

    def unique_key(self, bound: Mapping[str, Any]) -> str | None:
        """The key that one open job at a time may have, if the task has keys. Raises UniqueKeyError."""
        return None if self.key is None else self.key.of(bound, rest=_EXTRA_POSITIONAL, more=_EXTRA_KEYWORD)


def require_task(name: str, function: Any) -> None:
    """Raise InvalidTaskError, which says why, for what is no function that a job could run."""
    if inspect.iscoroutine(function) or inspect.isasyncgen(function) or inspect.isgenerator(function):
        if inspect.iscoroutine(function):
            function.close()  # nobody will ever run it, and that is told here
        raise InvalidTaskError(
            function.__qualname__, f"it is a {_kind_of(function)}, so it was called already; hand over the function "
            f"and its arguments apart: add_task({function.__name__}, …), not add_task({function.__name__}(…))",
        )  # fmt: skip
    if not callable(function):
        raise InvalidTaskError(
            name, f"it is of type {type(function).__name__}, which is not callable: hand over the function itself"
        )
    body = body_of(function)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        raise InvalidTaskError(
            name, "it is a generator: what it yields has no meaning yet; return the result, "
            "and tell how far it is by a parameter `progress: Progress = Progress()`",
        )  # fmt: skip


def _kind_of(called: Any) -> str:
    return "coroutine" if inspect.iscoroutine(called) else "generator"


def is_unbound_method(function: Any) -> bool:
    """Whether it is a function of a class, whose first argument is the object (``self``) or the class (``cls``)."""
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not inspect.isfunction(function) or not owner or owner.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(function).parameters), "") in {"self", "cls"}


class Registry:
    """All tasks of one engine, by name. Only what is in it, or found by :meth:`find`, ever runs."""

    def __init__(self) -> None:
        """Start empty."""
        self._tasks: dict[str, TaskDefinition] = {}
        self._handed: OrderedDict[str, TaskDefinition] = OrderedDict()

    def __iter__(self) -> Iterator[TaskDefinition]:
        """All registered tasks."""
        return iter(self._tasks.values())

    @property
    def names(self) -> list[str]:
        """The names of all registered tasks, sorted."""
        return sorted(self._tasks)

    def add(self, definition: TaskDefinition) -> None:
        """Register a task. Raises DuplicateTaskError where the name is another function's."""
        earlier = self._tasks.get(definition.name)
        if earlier is not None and earlier.function is not definition.function:
            raise DuplicateTaskError(definition.name)
        self._tasks[definition.name] = definition

    def get(self, name: str) -> TaskDefinition:
        """A registered task. Raises UnknownTaskError."""
        try:
            return self._tasks[name]
        except KeyError:
            raise UnknownTaskError(name, self.names) from None

    def hand_over(self, function: Callable[..., Any]) -> TaskDefinition | None:
        """The task of a function that was handed over without registration; None where it has no lasting name."""
        name = lasting_name(function)
        if name is None:
            return None
        known = self._tasks.get(name) or self._handed.get(name)
        if known is None or known.function != function:
            known = self._handed[name] = TaskDefinition.of(name, function, TaskOptions())
        return known

    def find(self, name: str) -> TaskDefinition | None:
        """The task a stored job names: registered, handed over before, or a function of a module that is loaded.

        A module is never imported here: a job of a module that this process has not loaded is left to others. Raises
        TaskChangedError where the name leads to something else now.
        """
        known = self._tasks.get(name) or self._handed.get(name)
        if known is None:
            function = _loaded_function(name)
            if function is not None:
                known = self._handed[name] = TaskDefinition.of(name, function, TaskOptions())
        return known

    def has(self, name: str) -> bool:
        """Whether jobs that name this task are claimed here; a task that cannot be looked up fails its jobs then."""
        try:
            return self.find(name) is not None
        except BaseException:  # noqa: BLE001 - of any class: a stored name may lead to any object
            return True


def unwrap_partial(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
    """Take ``functools.partial`` apart: the function below it, with all arguments."""
    while isinstance(function, partial):
        args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
        function = function.func
    return function, args, kwargs


def lasting_name(function: Callable[..., Any]) -> str | None:
    """The name ``module:qualname`` under which ``function`` is found again after a restart, or None.

    A module that is run as a program has the name it is imported by: ``pkg.mod`` for ``python -m pkg.mod``, ``app`` for
    ``python app.py``. What has no file, as in a shell, has none: ``__main__`` is another module in every program.
    """
    module, qualname = module_and_qualname(function)
    if not module or not qualname or "<" in qualname or inspect.isclass(function):
        return None
    if _attribute(sys.modules.get(module), qualname) != function:
        return None
    name = _main_name() if module == _MAIN else module
    return f"{name}:{qualname}" if name else None


def is_async_callable(function: Any) -> bool:
    """Whether calling it gives a coroutine: ``async def``, also below a partial or as ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or (
        not inspect.isclass(function) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    )


def dump_result(task: str, value: Any, *, most_bytes: int = _MOST_BYTES) -> str:
    """A task's result as JSON text, null for NaN and infinity. Raises ResultError where it has no JSON form."""
    if value is None:
        return "null"
    try:
        text = _result_text(value)
    except Exception:  # noqa: BLE001 - what its own serializers raise; told on the job
        text = None
    if text is None or has_long_number(text):
        raise ResultError(
            f"task {task!r} ran, and its result, of type {type(value).__name__}, has no JSON form; "
            "return a model, a dataclass, plain values or None"
        )
    if len(text) > most_bytes:
        raise ResultError(
            f"task {task!r} ran, and its result is {len(text):,} bytes as JSON, more than {most_bytes:,} "
            "(ASYNCBG_JOBS__MAX_RESULT_BYTES); store it elsewhere and return where"
        )
    return text


def _result_text(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="null", bytes_mode="base64").decode()
    except (PydanticSerializationError, UnicodeError):  # a lone surrogate, or no JSON at all
        try:
            plain = to_jsonable_python(value, bytes_mode="base64")
        except (PydanticSerializationError, UnicodeError):
            plain = value
        return dump_json(plain)


_arguments: OrderedDict[Any, tuple[Callable[[Any], bool], Arguments]] = OrderedDict()


def arguments_of(function: Callable[..., Any]) -> Arguments:
    """The arguments of a function; the last thousand are kept, closures of one definition as one."""
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
    """Tells whether another function of the same code has the same annotations, and the very same defaults."""
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


def _loaded_function(name: str) -> Callable[..., Any] | None:
    """The function of this name in a module that is loaded; None where there is none.

    Raises TaskChangedError where the name leads to something else than what it says.
    """
    module_name, _, qualname = name.partition(":")
    if not qualname:
        return None
    if module_name == _MAIN:
        raise TaskChangedError(name, "is in another module in every program; give the task a name with @bg.task")
    module = sys.modules.get(module_name) or (sys.modules.get(_MAIN) if module_name == _main_name() else None)
    found = _attribute(module, qualname)
    if found is None or not callable(found):
        return None
    its_module, its_qualname = module_and_qualname(found)
    is_named_so = its_qualname == qualname and its_module in (module_name, getattr(module, "__name__", None))
    if inspect.isclass(found) or not is_named_so:
        raise TaskChangedError(name, f"leads to {'a class' if inspect.isclass(found) else 'another function'} now")
    return cast("Callable[..., Any]", found)


def _attribute(module: object, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _main_name() -> str | None:
    """The name by which others import the program's own module: what ``python -m`` was told, or that of its file."""
    main = sys.modules.get(_MAIN)
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return _module_name(file, sys.path[0]) if file else None


@lru_cache(maxsize=16)
def _module_name(file: str, folder: str) -> str | None:
    """The name by which ``file`` is imported where ``folder`` is on the path, None where it cannot be."""
    path = Path(file).resolve()
    return path.stem if path.stem.isidentifier() and path.parent == Path(folder).resolve() else None


def _marks(signature: inspect.Signature) -> dict[str, Mark]:
    """What a function's annotations mark as personal; ``*args`` and ``**kwargs`` are marked item by item."""
    marks: dict[str, Mark] = {}
    for name, parameter in signature.parameters.items():
        mark = mark_of(parameter.annotation)
        if mark is None:
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            marks[_EXTRA_POSITIONAL] = {EVERY: mark}
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            marks[_EXTRA_KEYWORD] = {EVERY: mark}
        else:
            marks[name] = mark
    result = mark_of(signature.return_annotation)
    return marks if result is None else {**marks, RESULT: result}


def _adapter(fields: dict[str, Any]) -> pydantic.TypeAdapter[Any]:
    """The validator of an object with these fields; a field pydantic knows nothing of takes anything."""
    try:
        return _build(fields)
    except (pydantic.PydanticSchemaGenerationError, pydantic.PydanticUserError, NameError):
        return _build({name: hint if _is_known(name, hint) else get_origin(hint)[Any] for name, hint in fields.items()})


def _build(fields: dict[str, Any]) -> pydantic.TypeAdapter[Any]:
    shape = cast(Any, TypedDict)("arguments", fields)  # made from a signature, so not a literal
    shape.__pydantic_config__ = _CONFIG
    return pydantic.TypeAdapter(shape)


def _is_known(name: str, hint: Any) -> bool:
    try:
        _build({name: hint})
    except (pydantic.PydanticSchemaGenerationError, pydantic.PydanticUserError, NameError):
        return False
    return True


def _is_plain(hint: Any) -> bool:
    """Whether a field (``Required[…]``) is one of the plain types, with no mark on it that changes values."""
    inner = get_args(hint)[0]
    marks = getattr(inner, "__metadata__", ())
    if all(mark is Personal or isinstance(mark, Personal) for mark in marks):
        inner = get_args(inner)[0] if marks else inner
    return inner in _PLAIN


def _or_default(annotation: Any, parameter: inspect.Parameter) -> Any:
    """The annotation, or the parameter's default where the annotation does not allow it: ``items: list = None``."""
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
    except Exception:  # noqa: BLE001 - what the annotation's own validators raise
        return False
    return True


def _checked(check: Callable[[Any], Any], given: Any, task: str) -> dict[str, Any]:
    """What ``check`` makes of the arguments. Raises ArgumentsError.

    pydantic's error quotes its input, and Starlette's BaseHTTPMiddleware brings back what ``from None`` has put away:
    so ours is raised where there is no other.
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
