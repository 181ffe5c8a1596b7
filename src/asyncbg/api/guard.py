"""The door of the service: one guard before everything, so that a route added later is closed until it is opened here.

It is plain ASGI and stands before the router: pages, documents, streams and paths that do not exist are behind it too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncbg.api.auth import NOBODY, Caller, bind, bound, confirm_with, required, route_path
from asyncbg.api.gate import COOKIE, Gate
from asyncbg.api.origin import refuse_cross_site
from asyncbg.api.problems import describe, headless, problem_docs, problem_response
from asyncbg.errors import AsyncBGError, AuthError, NotRunningError
from asyncbg.services.audit import Audit

OPEN: Final = frozenset(
    {
        ("GET", "/"),
        ("HEAD", "/"),
        ("POST", "/session"),
        ("GET", "/health/live"),
        ("HEAD", "/health/live"),
        ("GET", "/health/ready"),
        ("HEAD", "/health/ready"),
        ("GET", "/.well-known/security.txt"),
        ("HEAD", "/.well-known/security.txt"),
    }
)
"""All that is open to everybody: the page to sign in at, whether the service lives, whom to tell of a hole in it."""
_LEAVING: Final = frozenset({("DELETE", "/session"), ("POST", "/sign-out")})
"""Needs no scope: whoever is in may leave."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands where the route would, of a request that came to none."""

    path: str


class Guard:
    """ASGI middleware that finds out who calls, and lets in who may."""

    def __init__(self, app: ASGIApp, *, gate: Gate, audit: Audit) -> None:
        """Stand before ``app``."""
        self._app = app
        self._gate = gate
        self._audit = audit
        self._known_words: frozenset[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its caller, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            await self._admit(connection)
        except AsyncBGError as error:
            await self._refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, connection: HTTPConnection) -> None:
        """Find out who calls, and whether it may do what it asks for. Raises AuthError, DatabaseError."""
        method: str = connection.scope.get("method", "WEBSOCKET")
        path = route_path(connection.scope)
        if (method, path) in OPEN:
            refuse_cross_site(method, connection.headers, must_tell=False)
            bind(connection, await self._recognise(connection) if path == "/" else NOBODY)
            return
        caller = await self._gate.caller(connection)
        bind(connection, caller)
        confirm_with(connection, lambda: self._gate.confirm(caller))
        if (method, path) not in _LEAVING:
            caller.require(required(method, path))

    async def _recognise(self, connection: HTTPConnection) -> Caller:
        """Who is at an open door, for those who say so; nobody otherwise, whatever is wrong with the credentials."""
        try:
            return await self._gate.caller(connection)
        except AsyncBGError:
            return NOBODY

    async def _refuse(self, error: AsyncBGError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        problem = describe(error)
        scope["route"] = _Refused(self._shown(scope))  # for the access log: no route was looked for
        if isinstance(error, AuthError):
            self._note(problem.kind, scope)
        answer = headless(send) if scope["method"] == "HEAD" else send
        await problem_response(Request(scope), problem)(scope, receive, answer)

    def _note(self, kind: str, scope: Scope) -> None:
        """Into the audit log, with the caller if it is known."""
        caller = bound(HTTPConnection(scope))
        try:
            self._audit.refuse(
                "request", f"{scope['method']} {self._shown(scope)}", who=caller.owner if caller else "?", reason=kind
            )
        except NotRunningError:
            return

    def _shown(self, scope: Scope) -> str:
        """The first word of the path, where it is one of ours: what follows may be somebody's name."""
        word = route_path(scope).split("/")[1:2]
        return f"/{word[0]}" if word and word[0] in self._words(scope) else "/?"

    def _words(self, scope: Scope) -> frozenset[str]:
        """What a path of this service may begin with."""
        if self._known_words is None:
            self._known_words = frozenset(_first_words(scope["app"].routes))
        return self._known_words


def _first_words(routes: Iterable[Any]) -> Iterator[str]:
    """The first word of every path that begins with a fixed one, also of routers in routers."""
    for route in routes:
        yield from _first_words(getattr(getattr(route, "original_router", None), "routes", ()))
        word = str(getattr(route, "path", "")).partition("/")[2].partition("/")[0]
        if word and "{" not in word:
            yield word


def describe_guard(app: FastAPI) -> None:
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
        refusals = {str(status): response for status, response in problem_docs(401, 403).items()}
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if (method.upper(), path) in OPEN:
                    operation["security"] = []
                else:
                    operation["responses"] = {**operation["responses"], **refusals}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
