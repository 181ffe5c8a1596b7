"""What the access log shows of a request: the path of its route, never what a stranger put into it.

uvicorn logs the path and the query as they came, and ``POST /send-notification/{email}`` has a person in its path. So
the line names the route, job ids stay, every other parameter is shown by its name, and a query is not shown at all.
"""

import logging
from contextvars import ContextVar
from typing import Final

from starlette.types import Scope

from asyncbg.api.shown_path import shown_route

_request: Final[ContextVar[Scope | None]] = ContextVar("asyncbg_request", default=None)


def remember(scope: Scope) -> None:
    """The request that the current task serves: its route is known when the line is written."""
    _request.set(scope)


def show_route(record: logging.LogRecord) -> bool:
    """A filter for the logger ``uvicorn.access``, which logs client, method, path with query, version and status."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        record.args = (client, method, shown_route(_request.get(), str(path)), version, status)
    return True
