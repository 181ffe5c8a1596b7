"""Validation of request inputs beyond FastAPI's: unknown or repeated query parameters, and the idempotency key.

A misspelt filter that is ignored would return everything, so queries are validated as strictly as bodies.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from fastapi import Header
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from pydantic import BaseModel

from asyncbg.errors import ErrorItem

Reader = TypeVar("Reader", bound=Callable[..., Any])

_FIELDS: Final = "__asyncbg_query__"
_SEQUENCES: Final = (list, tuple, set, frozenset)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="a repeated request with the same key returns the same jobs; 1 to 255 printable ASCII characters",
    ),
]


def refuse_input(loc: tuple[str, ...], msg: str, kind: str) -> RequestValidationError:
    """Return the error for an input that is well-formed but not acceptable; answered with 422."""
    return RequestValidationError([ErrorItem(loc=list(loc), msg=msg, type=kind)])


def reads_query(fields: Iterable[str]) -> Callable[[Reader], Reader]:
    """Declare the query parameters that a dependency reads from the request, and that its signature does not name."""

    def declare(reader: Reader) -> Reader:
        setattr(reader, _FIELDS, tuple(fields))
        return reader

    return declare


async def refuse_unknown_query(request: Request) -> None:
    """A dependency of every library route; it runs after the application's own, which authenticate."""
    if not request.scope["query_string"]:
        return
    known = dict(_known(_dependant(request)))
    given = [name for name, _ in request.query_params.multi_items()]
    errors = [*_unknown(given, known), *_repeated(given, known)]
    if errors:
        raise RequestValidationError(errors)


def takes_body(request: Request) -> bool:
    """Whether a body is documented for the route, or declared by it or by one of its dependencies."""
    documented = getattr(request.scope["route"], "openapi_extra", None) or {}
    return "requestBody" in documented or _has_body_params(_dependant(request))


def _has_body_params(dependant: Dependant) -> bool:
    return bool(dependant.body_params) or any(map(_has_body_params, dependant.dependencies))


def _unknown(given: Iterable[str], known: Mapping[str, bool]) -> Iterator[ErrorItem]:
    msg = f"is not a parameter of this route; it takes {', '.join(sorted(known)) or 'none'}"
    for name in dict.fromkeys(given):
        if name not in known:
            yield ErrorItem(loc=["query", name], msg=msg, type="extra_forbidden")


def _repeated(given: list[str], known: Mapping[str, bool]) -> Iterator[ErrorItem]:
    for name, takes_many in known.items():
        if not takes_many and given.count(name) > 1:
            yield ErrorItem(loc=["query", name], msg="should be given once", type="repeated")


def _dependant(request: Request) -> Dependant:
    """Return FastAPI's description of the route, with the dependencies that it was included with."""
    context = request.scope.get("fastapi", {}).get("effective_route_context")
    found = getattr(context, "dependant", None)
    return found if isinstance(found, Dependant) else request.scope["route"].dependant


def _known(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """Yield the query parameters of a route and its dependencies, and whether each can be repeated."""
    for field in dependant.query_params:
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            for name, inner in annotation.model_fields.items():
                yield inner.alias or name, _takes_many(inner.annotation)
        else:
            yield field.alias, _takes_many(annotation)
    for name in getattr(dependant.call, _FIELDS, ()):
        yield name, False
    scheme = getattr(dependant.call, "model", None)  # of a security scheme, such as APIKeyQuery
    if getattr(getattr(scheme, "in_", None), "value", None) == "query":
        yield getattr(scheme, "name", ""), False
    for inner_dependant in dependant.dependencies:
        yield from _known(inner_dependant)


def _takes_many(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in {Union, UnionType}:
        return any(map(_takes_many, get_args(annotation)))
    kind = origin or annotation
    return isinstance(kind, type) and issubclass(kind, _SEQUENCES)
