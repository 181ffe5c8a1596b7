"""What the access log shows of a request: the path of its route, never what a stranger put into it.

uvicorn logs the path and the query as they came, and ``POST /send-notification/{email}`` has a person in its path. So
the line names the route, job ids stay, every other parameter is shown by its name, and a query is not shown at all.
Where there is no route, what is no word of ours may be a name in a mistyped path, and is not shown either.
"""

import logging
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import unquote

from starlette.types import Scope

from asyncbg.api.paths import hide_unknown, words_of
from asyncbg.ids import is_job_id

_LONGEST: Final = 200
_request: Final[ContextVar[Scope | None]] = ContextVar("asyncbg_request", default=None)


def remember(scope: Scope) -> None:
    """The request that the current task serves: its route is known when the line is written."""
    _request.set(scope)


def show_route(record: logging.LogRecord) -> bool:
    """A filter for the logger ``uvicorn.access``, which logs client, method, path with query, version and status."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        record.args = (client, method, _shown(_request.get(), str(path)), version, status)
    return True


def _shown(scope: Scope | None, path: str) -> str:
    """The route's path; where no route was found, only what is known of the path itself, cut."""
    scope = scope or {}
    template = getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        words = frozenset(words_of(getattr(scope.get("app"), "routes", ())))
        return hide_unknown(unquote(path.partition("?")[0])[:_LONGEST], words)
    for name, value in dict[str, Any](scope.get("path_params") or {}).items():
        if is_job_id(str(value)):
            template = template.replace(f"{{{name}}}", str(value))
    return template
