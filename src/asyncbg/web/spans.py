"""What traces tell of a request: its path and the names in its query, without people in them."""

from typing import Final
from urllib.parse import parse_qsl, quote

from opentelemetry import trace
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncbg.privacy import redact
from asyncbg.web.shown_path import PATH_CHARS, Paths

_MOST_NAMES: Final = 20
_LONGEST_NAME: Final = 100


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


def _names_of(query: str) -> str:
    """The names in a query; what they are set to may be anything."""
    names = [redact(name)[:_LONGEST_NAME] for name, _ in parse_qsl(query, keep_blank_values=True)[:_MOST_NAMES]]
    return "?" + "&".join(f"{quote(name, safe=PATH_CHARS)}=…" for name in names) if query else ""
