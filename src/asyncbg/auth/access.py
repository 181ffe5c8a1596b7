"""The access that a route requires of its caller, and the lookup of the route that serves a request.

A check that runs before the router has to use the route that the router will choose. The text of a path does not
identify the route: ``/process/{name}`` matches any name, including that of another route.
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
    """The access that a route requires. A route that declares none requires ``read`` or ``submit``, by its method."""

    OPEN = auto()
    """No credentials."""
    OPTIONAL = auto()
    """No credentials, but the answer depends on the caller if it is authenticated."""
    AUTHENTICATED = auto()
    """An authenticated caller, with any scopes."""
    READ = auto()
    """The scope ``read``."""
    STREAM = auto()
    """The scope ``read``, or a ticket for its path."""
    SUBMIT = auto()
    """The scope ``submit``."""

    @property
    def is_open(self) -> bool:
        """Whether it can be called without credentials."""
        return self in {Access.OPEN, Access.OPTIONAL}

    @property
    def scope(self) -> Scope | None:
        """The scope it requires, if any."""
        return _SCOPES.get(self)


_SCOPES = {Access.READ: Scope.READ, Access.STREAM: Scope.READ, Access.SUBMIT: Scope.SUBMIT}


def requires(access: Access) -> Callable[[Endpoint], Endpoint]:
    """Declare the access that the routes of a function require."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _DECLARED, access)
        return endpoint

    return declare


def required_access(endpoint: object, method: str) -> Access:
    """Return the access that the route of ``endpoint`` requires; for None (no route) the default of ``method``."""
    declared = getattr(endpoint, _DECLARED, None)
    if isinstance(declared, Access):
        return declared
    return Access.READ if method in _SAFE else Access.SUBMIT


def mount_prefix(path: str, template: str) -> str:
    """Return the prefix that a route with the path ``template`` is mounted under, given the ``path`` of a request."""
    return "/".join(path.split("/")[: -template.count("/")])


class MatchedRoute(NamedTuple):
    """The route that serves a request: the access it requires, and its path with the names of its parameters."""

    access: Access
    template: str | None


class RouteTable:
    """The routes of an application, in the order its router tries them."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        """Read ``routes``. Routes that are added later are not found, so what they declare does not count."""
        self._routes = tuple(iter_route_contexts(routes))
        self._matching = tuple((route.matches, route.endpoint, route.path) for route in self._routes)

    def find(self, scope: ASGIScope) -> MatchedRoute:
        """Return the route that matches the path and method of a request, or the default access where none matches.

        A route that matches the path with another method only does not count: the router answers 405 itself.
        """
        method: str = scope.get("method", "WEBSOCKET")
        for matches, endpoint, path in self._matching:
            if matches(scope)[0] is Match.FULL:
                return MatchedRoute(required_access(endpoint, method), path)
        return MatchedRoute(required_access(None, method), None)

    def operations(self) -> Iterator[tuple[str, str, Access]]:
        """Yield the method, path and access of each operation."""
        for route in self._routes:
            for method in route.methods or ():
                yield method, route.path or "", required_access(route.endpoint, method)
