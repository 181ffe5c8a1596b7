"""What a route asks of its caller, declared on the route, and which route of an application serves a request.

Whoever decides before the router runs has to decide by the route that the router will choose. The text of a path says
nothing: ``/process/{name}`` takes any name, that of another route too.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Match
from starlette.types import Scope as ASGIScope

from asyncbg.auth.api_key import Scope

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_DECLARED = "__asyncbg_access__"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Access(Enum):
    """What a route asks of its caller. A route that declares nothing asks for ``read`` or ``submit``, by its method."""

    OPEN = auto()
    """Nothing: anybody may call it."""
    WELCOME = auto()
    """Nothing, but it answers a known caller differently."""
    CALLER = auto()
    """To be known, with any scopes."""
    READ = auto()
    """The scope ``read``."""
    STREAM = auto()
    """The scope ``read``, or a ticket for its path."""
    SUBMIT = auto()
    """The scope ``submit``."""

    @property
    def is_open(self) -> bool:
        """Whether anybody may call it."""
        return self in {Access.OPEN, Access.WELCOME}

    @property
    def scope(self) -> Scope | None:
        """The scope it asks for."""
        return _SCOPES.get(self)


_SCOPES = {Access.READ: Scope.READ, Access.STREAM: Scope.READ, Access.SUBMIT: Scope.SUBMIT}


def asks(access: Access) -> Callable[[Endpoint], Endpoint]:
    """Declare what the routes of a function ask of their callers."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _DECLARED, access)
        return endpoint

    return declare


def access_of(endpoint: object, method: str) -> Access:
    """What the route of ``endpoint`` asks. None is no route: it is treated as one that declares nothing."""
    declared = getattr(endpoint, _DECLARED, None)
    if isinstance(declared, Access):
        return declared
    return Access.READ if method in _SAFE else Access.SUBMIT


def prefix_before(path: str, template: str) -> str:
    """What stands before the part of ``path`` that ``template``, a route's own path, takes: the prefix it has here."""
    return "/".join(path.split("/")[: -template.count("/")])


class Served(NamedTuple):
    """The route that serves a request: what it asks, and its path with the names of its parameters."""

    access: Access
    template: str | None


class RouteTable:
    """The routes of an application, in the order its router tries them."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        """Read ``routes``. A route that is added later is not known here, so nothing that it declares counts."""
        self._routes = tuple(iter_route_contexts(routes))
        self._matching = tuple((route.matches, route.endpoint, route.path) for route in self._routes)

    def find(self, scope: ASGIScope) -> Served:
        """The route that takes the path and the method of a request; for no route what one asks that declares nothing.

        A route that takes the path with another method only is none: the router answers 405 itself.
        """
        method: str = scope.get("method", "WEBSOCKET")
        for matches, endpoint, path in self._matching:
            if matches(scope)[0] is Match.FULL:
                return Served(access_of(endpoint, method), path)
        return Served(access_of(None, method), None)

    def operations(self) -> Iterator[tuple[str, str, Access]]:
        """The method, the path and the access of each operation."""
        for route in self._routes:
            for method in route.methods or ():
                yield method, route.path or "", access_of(route.endpoint, method)
