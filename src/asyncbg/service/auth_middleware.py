"""The door of the service: one guard before everything, so that a route added later is closed until it is opened here.

It is plain ASGI and stands before the router: pages, documents, streams and paths that do not exist are behind it too.
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
from asyncbg.web.problems import describe, headless, problem_docs, problem_response


@dataclass(frozen=True, slots=True)
class _UnroutedRequest:
    """Stands where the route would, of a request that came to none."""

    path: str


class AuthMiddleware:
    """ASGI middleware that finds out who calls, and lets in who may."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, audit: Audit) -> None:
        """Stand before ``app``."""
        self._app = app
        self._authenticator = authenticator
        self._audit = audit
        self._routes: RouteTable | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its caller, or refuse it."""
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
        """The route that the router will choose."""
        if self._routes is None:
            self._routes = RouteTable(scope["app"].routes)
        return self._routes.find(scope)

    async def _authorize(self, connection: HTTPConnection, access: Access) -> None:
        """Find out who calls, and whether it may do what it asks for. Raises AuthError, DatabaseError."""
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
        """Who is at an open door, for those who say so; nobody otherwise, whatever is wrong with the credentials."""
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
        problem, shown = describe(error), _loggable_path(served)
        scope["route"] = _UnroutedRequest(shown)  # for the access log: the router was not asked
        if isinstance(error, AuthError):
            self._audit_refusal(problem.kind, f"{scope['method']} {shown}", get_caller(HTTPConnection(scope)))
        answer = headless(send) if scope["method"] == "HEAD" else send
        await problem_response(Request(scope), problem)(scope, receive, answer)

    def _audit_refusal(self, kind: str, which: str, caller: Caller | None) -> None:
        """Into the audit log, with the caller if it is known."""
        try:
            self._audit.refuse("request", which, who=caller.owner if caller else "?", reason=kind)
        except NotRunningError:
            return


def _loggable_path(served: MatchedRoute) -> str:
    """The first word of the route's path; nothing of a path that led to none, since it may be somebody's name."""
    return f"/{served.template.split('/')[1]}" if served.template else "/?"


def document_authentication(app: FastAPI) -> None:
    """Let the OpenAPI document of ``app`` say how to get in, and that every other operation may answer 401 and 403."""
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
