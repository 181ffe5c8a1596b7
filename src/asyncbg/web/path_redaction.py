"""A request's path as errors, logs and traces may show it: a stranger can put a person into any part of it.

Of a path whose route is known, a log names the route and shows job ids; a trace also shows ids and numbers, and has
pseudonyms for marked parameters. Of any other path only ids, numbers and words of ours are shown.
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
_LONGEST: Final = 200
_MOST_NAMES: Final = 20
_LONGEST_NAME: Final = 100


def shown_route(scope: Scope | None, path: str) -> str:
    """The path of the route that serves a request; where no route was found, only what is known of ``path``, cut."""
    scope = scope or {}
    template = getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        words = frozenset(words_of(getattr(scope.get("app"), "routes", ())))
        return hide_unknown(unquote(path.partition("?")[0])[:_LONGEST], words)
    return _with_job_ids(template, scope)


def shown_below(scope: Scope, template: str) -> str:
    """The path of a route of ours behind the prefix that it has in an application of somebody else's."""
    return _masked(mount_prefix(scope["path"], template)) + _with_job_ids(template, scope)


def _with_job_ids(template: str, scope: Scope) -> str:
    for name, value in dict[str, Any](scope.get("path_params") or {}).items():
        if is_job_id(str(value)):
            template = template.replace(f"{{{name}}}", str(value))
    return template


class PathRedactor:
    """The paths of some routers: marked parameters become pseudonyms, and only what is an id or a number is shown."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        """Read the routes of ``routers``, which are mounted at the root."""
        routers = tuple(routers)
        self._routes = list(_with_parameters(routers))
        self._words = frozenset(words_of(route for router in routers for route in router.routes))

    def shown(self, path: str) -> str:
        """``path`` as it may be told."""
        for pattern, kinds in self._routes:
            found = pattern.match(path)
            if found is not None:
                for name, kind in kinds.items():
                    path = path.replace(f"/{found[name]}", f"/{_shown(name, found[name], kind)}", 1)
                return _masked(path)
        return hide_unknown(path, self._words)


class SpanMiddleware:
    """ASGI middleware: the span that FastAPI makes of a request gets the same path, and no values of a query."""

    def __init__(self, app: ASGIApp, *, paths: PathRedactor) -> None:
        """Wrap ``app``."""
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        span = trace.get_current_span()
        if scope["type"] == "http" and span.is_recording():
            span.set_attribute("url.path", self._paths.shown(scope["path"]))
            if scope.get("query_string"):
                span.set_attribute("url.query", _names_of(scope["query_string"].decode("latin-1")).removeprefix("?"))
        await self._app(scope, receive, send)


def hide_unknown(path: str, words: Iterable[str]) -> str:
    """A path that led to no route: its ids, its numbers and ``words`` of ours; anything else may be somebody's name."""
    return "/".join(part if part in words or not part or _ID.fullmatch(part) else _HIDDEN for part in path.split("/"))


def words_of(routes: Iterable[Any]) -> Iterator[str]:
    """The fixed words in the paths of ``routes``, also of routers in routers."""
    for route in routes:
        yield from words_of(getattr(getattr(route, "original_router", None), "routes", ()))
        yield from (word for word in str(getattr(route, "path", "")).split("/") if word and "{" not in word)


def kinds_of(endpoint: Callable[..., Any]) -> Mapping[str, str]:
    """Of which kind each marked parameter of a route is; one with marked parts only is none of a path's."""
    marks = {name: mark_of(one.annotation) for name, one in signature_of(endpoint).parameters.items()}
    return {name: mark for name, mark in marks.items() if isinstance(mark, str)}


def _masked(path: str) -> str:
    return quote(redact(path), safe=PATH_CHARS, errors="replace")


def _shown(name: str, value: str, kind: str | None) -> str:
    if kind is not None:
        return mask(value, kind)
    return value if _ID.fullmatch(value) else f"{{{name}}}"  # a route that takes a number refuses anything else


def _with_parameters(routers: Iterable[APIRouter]) -> Iterator[tuple[re.Pattern[str], Mapping[str, str | None]]]:
    """The pattern of each route's path that has parameters, and of which kind each of them is marked to be."""
    for router in routers:
        for route in router.routes:
            within = getattr(route, "original_router", None)  # a router that was included, as FastAPI keeps it
            if isinstance(within, APIRouter):
                yield from _with_parameters([within])
            elif isinstance(route, APIRoute) and route.param_convertors:
                kinds = kinds_of(route.endpoint)
                yield route.path_regex, {name: kinds.get(name) for name in route.param_convertors}


def _names_of(query: str) -> str:
    """The names in a query; what they are set to may be anything."""
    names = [redact(name)[:_LONGEST_NAME] for name, _ in parse_qsl(query, keep_blank_values=True)[:_MOST_NAMES]]
    return "?" + "&".join(f"{quote(name, safe=PATH_CHARS)}=…" for name in names) if query else ""
