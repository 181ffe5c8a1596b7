"""Authentication and authorization of every request to the service, before routing.

Plain ASGI middleware: it also covers pages, documents, streams and unknown paths. A new route is closed by default.
"""

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncbg.auth.access import Access, MatchedRoute, RouteTable
from asyncbg.auth.audit import Audit
from asyncbg.auth.authenticator import COOKIE, Authenticator
from asyncbg.auth.caller import NO_CALLER, Caller, get_caller, set_caller, set_recheck
from asyncbg.auth.origin import refuse_cross_site
from asyncbg.errors import AsyncBGError, AuthError, NotRunningError
from asyncbg.web.problem_route import headless
from asyncbg.web.problems import problem_docs, problem_for, problem_response


@dataclass(frozen=True, slots=True)
class _UnroutedRequest:
    """Placeholder for the matched route of a request that was refused before routing."""

    path: str


class AuthMiddleware:
    """ASGI middleware that authenticates the caller and checks the scope that the route requires."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, audit: Audit) -> None:
        self._app = app
        self._authenticator = authenticator
        self._audit = audit
        self._routes: RouteTable | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward an authorized request with its caller attached; answer any other with a problem document."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        served = self._match_route(scope)
        try:
            await self._authorize(HTTPConnection(scope), served.access)
        except AsyncBGError as error:
            await self._refuse(error, served, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _match_route(self, scope: Scope) -> MatchedRoute:
        """Return the route that the router will choose."""
        if self._routes is None:
            self._routes = RouteTable(scope["app"].routes)
        return self._routes.find(scope)

    async def _authorize(self, connection: HTTPConnection, access: Access) -> None:
        """Authenticate the caller and check its scope. Raises AuthError, DatabaseError."""
        if access.is_open:
            refuse_cross_site(connection.scope["method"], connection.headers, require_origin=False)
            set_caller(connection, await self._caller_or_nobody(connection) if access is Access.OPTIONAL else NO_CALLER)
            return
        caller = await self._authenticator.authenticate(connection, accept_ticket=access is Access.STREAM)
        set_caller(connection, caller)
        set_recheck(connection, lambda: self._authenticator.recheck(caller))
        if access.scope is not None:
            caller.require(access.scope)

    async def _caller_or_nobody(self, connection: HTTPConnection) -> Caller:
        """Return the caller of an open route, or the anonymous caller if the credentials are missing or invalid."""
        try:
            return await self._authenticator.authenticate(connection)
        except AsyncBGError:
            return NO_CALLER

    async def _refuse(
        self, error: AsyncBGError, served: MatchedRoute, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        problem, shown = problem_for(error), _loggable_path(served)
        scope["route"] = _UnroutedRequest(shown)  # for the access log: the request is not routed
        if isinstance(error, AuthError):
            self._audit_refusal(problem.kind, f"{scope['method']} {shown}", get_caller(HTTPConnection(scope)))
        answer = headless(send) if scope["method"] == "HEAD" else send
        await problem_response(Request(scope), problem)(scope, receive, answer)

    def _audit_refusal(self, kind: str, which: str, caller: Caller | None) -> None:
        """Record the refusal in the audit log, with the caller if it is known."""
        try:
            self._audit.refuse("request", which, who=caller.owner if caller else "?", reason=kind)
        except NotRunningError:
            return


def _loggable_path(served: MatchedRoute) -> str:
    """Return the first segment of the route's template; ``/?`` for an unknown path, which may hold personal data."""
    return f"/{served.template.split('/')[1]}" if served.template else "/?"


def document_authentication(app: FastAPI) -> None:
    """Add the authentication schemes to the OpenAPI document of ``app``, and 401 and 403 to protected operations."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        schemes = {
            "key": {"type": "http", "scheme": "bearer", "description": "an API key, made by `asyncbg keys create`"},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "set by `POST /session`"},
        }
        document.setdefault("components", {})["securitySchemes"] = schemes
        document["security"] = [{name: []} for name in schemes]
        open_operations = {
            (method, path) for method, path, access in RouteTable(app.routes).operations() if access.is_open
        }
        refusals = {str(status): response for status, response in problem_docs(401, 403).items()}
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if (method.upper(), path) in open_operations:
                    operation["security"] = []
                else:
                    operation["responses"] = {**operation["responses"], **refusals}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
