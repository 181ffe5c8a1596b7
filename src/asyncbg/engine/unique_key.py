"""Unique keys (``key=``): validated against the signature when the task is defined, computed for each call."""

import hashlib
import inspect
import string
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

from asyncbg.errors import UniqueKeyError

KeyOption: TypeAlias = str | Callable[..., str]
"""A format string over the parameters, or a function that takes all of them by name."""

_LONGEST = 255
_CONVERSIONS = (None, "r", "s", "a")


class UniqueKey:
    """Computes the unique key of a call from its arguments, defaults included."""

    def __init__(
        self, task: str, option: KeyOption, signature: inspect.Signature, *, injected: Collection[str] = ()
    ) -> None:
        """Validate ``option`` against the signature; ``injected`` parameters are unknown until the job runs.

        Raise UniqueKeyError, with the task, the field and the remedy.
        """
        self._task = task
        self._option = option
        self._defaults: dict[str, Any] = {}
        self._names: list[str] = []
        self._injected = frozenset(injected)
        self._rest = self._more = ""
        for name, parameter in signature.parameters.items():
            self._add(name, parameter)
        self._check()

    def _add(self, name: str, parameter: inspect.Parameter) -> None:
        if name in self._injected:
            return
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            self._more = name
            return
        self._names.append(name)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            self._rest = name
            self._defaults[name] = []
        elif parameter.default is not inspect.Parameter.empty:
            self._defaults[name] = parameter.default

    def of(self, bound: Mapping[str, Any], *, rest: str, more: str) -> str:
        """Return the key of the call ``bound``, which has ``*args`` under ``rest`` and ``**kwargs`` under ``more``.

        Raise UniqueKeyError if the format or the function fails.
        """
        values = {**bound.get(more, {}), **self._defaults, **bound}
        for name in (more, *self._injected):
            values.pop(name, None)
        if rest in values:
            values[self._rest] = values.pop(rest)
        try:
            return self._make(values)
        except BaseException as error:
            kind = "format" if isinstance(self._option, str) else "function"
            raise self._error(f"its {kind} failed with {type(error).__name__} for these arguments") from error

    def _make(self, values: dict[str, Any]) -> str:
        if isinstance(self._option, str):
            made: object = self._option.format_map(values)
        else:
            made = self._option(**values)
        text = str(made)
        encoded = text.encode()  # raises for a lone surrogate, which cannot be stored
        return text if len(text) <= _LONGEST else hashlib.sha256(encoded).hexdigest()  # it is only ever compared

    def _check(self) -> None:
        if isinstance(self._option, str):
            self._check_format(self._option)
        elif not callable(self._option):
            raise self._error(f"should be text or a function, not {type(self._option).__name__}")
        elif inspect.iscoroutinefunction(self._option):
            raise self._error("should be a plain function: the key is computed synchronously")
        else:
            self._check_function(self._option)

    def _check_format(self, template: str) -> None:
        try:
            fields = list(_fields(template))
        except ValueError as error:
            raise self._error(f"{template!r} is no format string: {error}; write {{{{ for a brace") from None
        for field, conversion in fields:
            if not field or field.isdecimal():
                raise self._error(f"the field {{{field}}} in {template!r} has no name; {self._remedy()}")
            name = field.replace("[", ".").partition(".")[0]
            if name in self._injected:
                raise self._error(f"{{{name}}} is supplied when the job runs, so it cannot be part of the key")
            if name not in self._names and not self._more:
                raise self._error(f"{{{name}}} in {template!r} is no parameter of the task; {self._remedy()}")
            if name != field:
                raise self._error(
                    f"{{{field}}} is an attribute of a parameter; pass a function instead: "
                    f"key=lambda {name}, **_: f{_quoted(template)}"
                )
            if conversion not in _CONVERSIONS:
                raise self._error(f"{{{field}!{conversion}}} has an unknown conversion; use !s, !r or !a, or none")

    def _check_function(self, function: Callable[..., str]) -> None:
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):  # a builtin without a signature
            return
        try:
            signature.bind(**dict.fromkeys(self._names))
        except TypeError as error:
            given = ", ".join(self._names) or "no argument"
            raise self._error(
                f"its function is called with the task's arguments by name ({given}) and does not take them: {error}; "
                "name those it needs, and take the others with **_"
            ) from None

    def _remedy(self) -> str:
        names = ", ".join(f"{{{name}}}" for name in self._names)
        return f"use {names}" if names else "the task has no parameters, so leave the field out"

    def _error(self, what: str) -> UniqueKeyError:
        return UniqueKeyError(self._task, what)


def _fields(template: str) -> Iterator[tuple[str, str | None]]:
    """Yield the replacement fields of a format string, including those in format specs. Raise ValueError."""
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is not None:
            yield field, conversion
            yield from _fields(spec or "")


def _quoted(template: str) -> str:
    return '"' + template.replace('"', "'") + '"'
