"""``bg.router``: the library's routes for local requests only, behind the application's authentication, or open."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, overload

from fastapi import APIRouter, Depends, Request
from starlette.types import Receive, Scope, Send

from asyncbg.auth.access import required_access
from asyncbg.auth.caller import authenticate_with
from asyncbg.auth.origin import refuse_cross_site, require_local
from asyncbg.web.problems import problem_docs

_REMEDY: Final = "to open these routes, include bg.router(auth=current_user) in the application"
_NOT_GIVEN: Final = object()


class EngineRouter(APIRouter):
    """The library's routes. Included as it is, it answers local requests only; :meth:`__call__` opens it to others."""

    def __init__(self, unguarded: APIRouter, with_ticket: APIRouter) -> None:
        """``unguarded`` are all routes; ``with_ticket`` the streams for requests that a ticket authenticates."""
        super().__init__()
        self.unguarded = unguarded
        """The routes without any check, for an application that authenticates all requests itself."""
        self.is_open = False
        """Whether :meth:`__call__` was called with ``auth=None``."""
        self._with_ticket = with_ticket
        self.include_router(unguarded, dependencies=[Depends(_require_local)], responses=problem_docs(403))

    @overload  # type: ignore[override]  # Starlette's ASGI call, and this overload beside it
    def __call__(self, *, auth: Callable[..., Any] | None) -> APIRouter: ...
    @overload
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]: ...
    def __call__(self, *asgi: Any, auth: Any = _NOT_GIVEN, **named: Any) -> Any:
        """Return the same routes, authenticated by the dependency ``auth``, or without any check with ``auth=None``.

        ``auth`` returns the owner's name, or an object with ``owner`` and ``scopes`` (of ``submit``, ``read`` and
        ``admin``), and raises the application's own error for a request that is not authenticated. A stream that is
        opened with a ticket has the ticket's holder as its caller.
        """
        if auth is _NOT_GIVEN:
            if not asgi and not named:
                raise TypeError(
                    "bg.router() needs auth=: a dependency that returns the owner, or None for no authentication"
                )
            return super().__call__(*asgi, **named)
        routes = APIRouter()
        if auth is None:
            self.is_open = True
            routes.include_router(self.unguarded)
        else:
            routes.include_router(self._with_ticket)
            routes.include_router(
                self.unguarded, dependencies=[Depends(authenticate_with(auth))], responses=problem_docs(401, 403)
            )
        return routes

    def is_included(self, routes: Any) -> bool:
        """Whether the ``routes`` of an application include this router as it is, at any depth."""
        below = [found for route in routes for found in _routers_of(route)]
        return any(found is self or self.is_included(getattr(found, "routes", None) or ()) for found in below)


def _routers_of(route: Any) -> list[Any]:
    """Return the included router, the mounted application, or the application that a middleware wraps."""
    found = [getattr(route, name, None) for name in ("original_router", "app")]
    return [one for one in found if one is not None]


async def _require_local(request: Request) -> None:
    """Refuse remote requests and requests of other sites' pages, except for health probes."""
    if not required_access(request.scope["endpoint"], request.method).is_open:
        require_local(request, remedy=_REMEDY)
        refuse_cross_site(request.method, request.headers, require_origin=False, remedy=_REMEDY)
