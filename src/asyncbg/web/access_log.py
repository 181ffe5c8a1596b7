"""What the access log shows of a request: the path of its route, never what a stranger put into it.

uvicorn logs the path and the query as they came, and ``POST /send-notification/{email}`` has a person in its path. So
the line names the route, job ids stay, every other parameter is shown by its name, and a query is not shown at all.
Where there is no route, what is no word of ours may be a name in a mistyped path, and is not shown either. In an
application of somebody else's that holds for our own routes only; how the others are logged is its own matter.
"""

import logging
from contextvars import ContextVar
from ipaddress import ip_address
from typing import Final
from urllib.parse import quote

from starlette.types import Scope

from asyncbg.web.path_redaction import shown_below, shown_route

_MOST_KNOWN: Final = 1_000
_ours: Final[dict[int, str]] = {}
"""What to show of the latest requests to our own routes, by a hash of what uvicorn would log: its context may be lost
between there and here, in a middleware that runs the application in a task of its own."""
_request: Final[ContextVar[Scope | None]] = ContextVar("asyncbg_request", default=None)


def remember(scope: Scope) -> None:
    """The request that the current task serves: its route is known when the line is written."""
    _request.set(scope)


def redact_path(record: logging.LogRecord) -> bool:
    """A filter for the logger ``uvicorn.access``, which logs client, method, path with query, version and status."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        record.args = (client, method, shown_route(_request.get(), str(path)), version, status)
    return True


def redact_client(record: logging.LogRecord) -> bool:
    """Of who called the address only: what a proxy passed on in X-Forwarded-For may be any text (RFC 9110, 17.16)."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        record.args = (_shown_client(record.args[0]), *record.args[1:])
    return True


def _shown_client(client: object) -> object:
    host, _, port = str(client).rpartition(":")
    return client if not client or _is_address(host or port) else "?"


def _is_address(text: str) -> bool:
    try:
        ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def note_library_request(scope: Scope, template: str) -> None:
    """A request that one of our own routes serves; its path ends as ``template``, behind the prefix it has here."""
    path, query = scope["path"], scope["query_string"]
    told = hash(quote(path) + (f"?{query.decode('ascii', 'replace')}" if query else ""))
    _ours.pop(told, None)
    _ours[told] = shown_below(scope, template)
    if len(_ours) > _MOST_KNOWN:
        del _ours[next(iter(_ours))]


def redact_library_path(record: logging.LogRecord) -> bool:
    """As both above, for our own routes in an application that is not ours; no other line is changed."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        shown = _ours.get(hash(path))
        if shown is not None:
            record.args = (_shown_client(client), method, shown, version, status)
    return True
