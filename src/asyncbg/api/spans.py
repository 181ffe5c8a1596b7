"""What traces tell of a request: its path, without people in it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import parse_qsl, quote

from fastapi import APIRouter
from fastapi.routing import APIRoute
from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncbg.context import signature_of
from asyncbg.personal import mark_of
from asyncbg.redact import mask, redact

_PATH_CHARS = "/{}[]@:!$&'()*+,;=-._~"
_ID = re.compile(r"\d{1,20}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_NAMES, _LONGEST_NAME = 20, 100


class Paths:
    """The paths of some routers: marked parameters become pseudonyms, and only what is an id or a number is shown."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        """Read the routes of ``routers``, which are mounted at the root."""
        self._routes = list(_with_parameters(routers))

    def shown(self, path: str) -> str:
        """``path`` as it may be told."""
        for pattern, kinds in self._routes:
            found = pattern.match(path)
            if found is not None:
                for name, kind in kinds.items():
                    path = path.replace(f"/{found[name]}", f"/{_shown(name, found[name], kind)}", 1)
                break
        return quote(redact(path), safe=_PATH_CHARS, errors="replace")


class CleanSpans:
    """ASGI middleware: the span that FastAPI makes of a request gets the same path, and no values of a query."""

    def __init__(self, app: ASGIApp, *, paths: Paths) -> None:
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
                yield route.path_regex, _kinds_of(route)


def _kinds_of(route: APIRoute) -> Mapping[str, str | None]:
    marks = {name: mark_of(one.annotation) for name, one in signature_of(route.endpoint).parameters.items()}
    told = {name: marks.get(name) for name in route.param_convertors}
    return {name: mark if isinstance(mark, str) else None for name, mark in told.items()}


def _names_of(query: str) -> str:
    """The names in a query; what they are set to may be anything."""
    names = [redact(name)[:_LONGEST_NAME] for name, _ in parse_qsl(query, keep_blank_values=True)[:_MOST_NAMES]]
    return "?" + "&".join(f"{quote(name, safe=_PATH_CHARS)}=…" for name in names) if query else ""
