"""Redaction of request paths in errors, logs and traces, since any part of a path may hold personal data.

Logs have the path of the matched route with job ids filled in. Traces also have other ids and numbers, and pseudonyms
for parameters that are marked as personal. Of a path that matches no route, only ids, numbers and words that occur in
the paths of routes are kept.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

from fastapi import APIRouter
from fastapi.routing import APIRoute
from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncbg.auth.access import mount_prefix
from asyncbg.core.ids import is_job_id
from asyncbg.engine.dependencies import signature_of
from asyncbg.privacy import mask, redact
from asyncbg.privacy.marks import mark_of

PATH_CHARS: Final = "/{}[]@:!$&'()*+,;=-._~"
_ID: Final = re.compile(r"\d{1,20}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HIDDEN: Final = "{...}"
_MAX_PATH_CHARS: Final = 200
_MAX_NAMES: Final = 20
_MAX_NAME_CHARS: Final = 100


def route_path(scope: Scope | None, path: str) -> str:
    """Return the path of the route of a request; where none matched, ``path`` redacted and truncated."""
    scope = scope or {}
    template = getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        words = frozenset(path_words(getattr(scope.get("app"), "routes", ())))
        return redact_unknown_path(unquote(path.partition("?")[0])[:_MAX_PATH_CHARS], words)
    return _with_job_ids(template, scope)


def library_route_path(scope: Scope, template: str) -> str:
    """Return the path of a library route with the prefix that it has in the application."""
    return _masked(mount_prefix(scope["path"], template)) + _with_job_ids(template, scope)


def _with_job_ids(template: str, scope: Scope) -> str:
    for name, value in dict[str, Any](scope.get("path_params") or {}).items():
        if is_job_id(str(value)):
            template = template.replace(f"{{{name}}}", str(value))
    return template


class PathRedactor:
    """Redacts the paths of some routers: marked parameters become pseudonyms, others stay only if ids or numbers."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        """Read the routes of ``routers``, which are mounted at the root."""
        routers = tuple(routers)
        self._routes = list(_with_parameters(routers))
        self._words = frozenset(path_words(route for router in routers for route in router.routes))

    def redact(self, path: str) -> str:
        """Return ``path`` without personal data."""
        for pattern, kinds in self._routes:
            found = pattern.match(path)
            if found is not None:
                for name, kind in kinds.items():
                    path = path.replace(f"/{found[name]}", f"/{_shown(name, found[name], kind)}", 1)
                return _masked(path)
        return redact_unknown_path(path, self._words)


class SpanMiddleware:
    """ASGI middleware that sets a redacted path, and a query without values, on the OpenTelemetry span of a request."""

    def __init__(self, app: ASGIApp, *, paths: PathRedactor) -> None:
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application."""
        span = trace.get_current_span()
        if scope["type"] == "http" and span.is_recording():
            span.set_attribute("url.path", self._paths.redact(scope["path"]))
            if scope.get("query_string"):
                span.set_attribute("url.query", _names_of(scope["query_string"].decode("latin-1")).removeprefix("?"))
        await self._app(scope, receive, send)


def redact_unknown_path(path: str, words: Iterable[str]) -> str:
    """Return a path that matches no route with only its ids, numbers and known ``words``; the rest may be personal."""
    return "/".join(part if part in words or not part or _ID.fullmatch(part) else _HIDDEN for part in path.split("/"))


def path_words(routes: Iterable[Any]) -> Iterator[str]:
    """Yield the fixed words in the paths of ``routes``, also of included routers."""
    for route in routes:
        yield from path_words(getattr(getattr(route, "original_router", None), "routes", ()))
        yield from (word for word in str(getattr(route, "path", "")).split("/") if word and "{" not in word)


def marked_parameters(endpoint: Callable[..., Any]) -> Mapping[str, str]:
    """Return the kind of personal data of each marked parameter of a route."""
    marks = {name: mark_of(one.annotation) for name, one in signature_of(endpoint).parameters.items()}
    return {name: mark for name, mark in marks.items() if isinstance(mark, str)}


def _masked(path: str) -> str:
    return quote(redact(path), safe=PATH_CHARS, errors="replace")


def _shown(name: str, value: str, kind: str | None) -> str:
    if kind is not None:
        return mask(value, kind)
    return value if _ID.fullmatch(value) else f"{{{name}}}"  # a route with a number parameter refuses anything else


def _with_parameters(routers: Iterable[APIRouter]) -> Iterator[tuple[re.Pattern[str], Mapping[str, str | None]]]:
    """Yield the pattern of each path with parameters, and the kind of personal data of each parameter."""
    for router in routers:
        for route in router.routes:
            within = getattr(route, "original_router", None)  # a router that was included, as FastAPI keeps it
            if isinstance(within, APIRouter):
                yield from _with_parameters([within])
            elif isinstance(route, APIRoute) and route.param_convertors:
                kinds = marked_parameters(route.endpoint)
                yield route.path_regex, {name: kinds.get(name) for name in route.param_convertors}


def _names_of(query: str) -> str:
    """Return the names in a query, without their values."""
    names = [redact(name)[:_MAX_NAME_CHARS] for name, _ in parse_qsl(query, keep_blank_values=True)[:_MAX_NAMES]]
    return "?" + "&".join(f"{quote(name, safe=PATH_CHARS)}=…" for name in names) if query else ""
