"""The library's routes as an application includes them: for this machine only, behind its own dependency, or open."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, overload

from fastapi import APIRouter, Depends, Request
from starlette.types import Receive, Scope, Send

from asyncbg.auth.access import required_access
from asyncbg.auth.caller import authenticate_with
from asyncbg.auth.origin import refuse_cross_site, require_local
from asyncbg.web.problems import problem_docs

_REMEDY: Final = "whoever runs the application opens these routes with bg.router(auth=current_user)"
_NOT_GIVEN: Final = object()


class EngineRouter(APIRouter):
    """The library's routes. Included as it is, it answers this machine only; :meth:`__call__` opens it to others."""

    def __init__(self, unguarded: APIRouter, with_ticket: APIRouter) -> None:
        """``unguarded`` are all routes; ``with_ticket`` those for callers with a ticket, who are not asked again."""
        super().__init__()
        self.unguarded = unguarded
        """The routes without any check, for an application that has its own before them all."""
        self.is_open = False
        """Whether ``auth=None`` was asked for."""
        self._with_ticket = with_ticket
        self.include_router(unguarded, dependencies=[Depends(_refuse_remote)], responses=problem_docs(403))

    @overload  # type: ignore[override]  # Starlette's own call, and one of ours beside it
    def __call__(self, *, auth: Callable[..., Any] | None) -> APIRouter: ...
    @overload
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]: ...
    def __call__(self, *asgi: Any, auth: Any = _NOT_GIVEN, **named: Any) -> Any:
        """The same routes, each of which asks the dependency ``auth`` first; with ``auth=None`` for everybody.

        ``auth`` returns the owner, a name, or something that has ``owner`` and ``scopes`` (of ``submit``, ``read`` and
        ``admin``), and raises what you raise for a stranger. A stream opened with a ticket is its holder's.
        """
        if auth is _NOT_GIVEN:
            if not asgi and not named:
                raise TypeError("bg.router() needs auth=, a dependency that returns the owner, or None for everybody")
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
        """Whether ``routes``, those of an application, lead to this router as it is, at any depth."""
        below = [found for route in routes for found in _routers_of(route)]
        return any(found is self or self.is_included(getattr(found, "routes", None) or ()) for found in below)


def _routers_of(route: Any) -> list[Any]:
    """What is below a route: an included router, a mounted application, or what a middleware wraps."""
    found = [getattr(route, name, None) for name in ("original_router", "app")]
    return [one for one in found if one is not None]


async def _refuse_remote(request: Request) -> None:
    """Answer this machine only, and no page of another site. Probes ask for the health from anywhere."""
    if not required_access(request.scope["endpoint"], request.method).is_open:
        require_local(request, remedy=_REMEDY)
        refuse_cross_site(request.method, request.headers, require_origin=False, remedy=_REMEDY)
