"""Redaction of the access log: the path of the matched route instead of the path that was requested.

uvicorn logs the path and the query as sent, and ``POST /send-notification/{email}`` has a person in its path. So the
logged path is that of the route with job ids filled in; other parameters are logged by name, and queries not at all.
Where no route matched, only words that occur in the paths of routes are logged, since a mistyped path may hold a name.
In an application that includes the library's router, only requests to the library's routes are redacted.
"""

import logging
from contextvars import ContextVar
from ipaddress import ip_address
from typing import Final
from urllib.parse import quote

from starlette.types import Scope

from asyncbg.web.path_redaction import library_route_path, route_path

_MAX_REMEMBERED: Final = 1_000
_paths: Final[dict[int, str]] = {}
"""The redacted paths of the latest requests to the library's routes, by the hash of what uvicorn logs.

A context variable may be lost in a middleware that runs the application in another task."""
_request: Final[ContextVar[Scope | None]] = ContextVar("asyncbg_request", default=None)


def set_request(scope: Scope) -> None:
    """Set the request of the current task; its route is known when its line is logged."""
    _request.set(scope)


def redact_path(record: logging.LogRecord) -> bool:
    """Filter that redacts the path in a record of ``uvicorn.access`` (client, method, path, version, status)."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        record.args = (client, method, route_path(_request.get(), str(path)), version, status)
    return True


def redact_client(record: logging.LogRecord) -> bool:
    """Filter that keeps the client only if it is an IP address: X-Forwarded-For may hold any text (RFC 9110, 17.16)."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        record.args = (_redacted_client(record.args[0]), *record.args[1:])
    return True


def _redacted_client(client: object) -> object:
    host, _, port = str(client).rpartition(":")
    return client if not client or _is_address(host or port) else "?"


def _is_address(text: str) -> bool:
    try:
        ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def note_library_request(scope: Scope, template: str) -> None:
    """Remember the redacted path of a request to the library's route with the path ``template``."""
    path, query = scope["path"], scope["query_string"]
    key = hash(quote(path) + (f"?{query.decode('ascii', 'replace')}" if query else ""))
    _paths.pop(key, None)
    _paths[key] = library_route_path(scope, template)
    if len(_paths) > _MAX_REMEMBERED:
        del _paths[next(iter(_paths))]


def redact_library_path(record: logging.LogRecord) -> bool:
    """Filter that redacts path and client of requests to the library's routes, and leaves other lines unchanged."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        shown = _paths.get(hash(path))
        if shown is not None:
            record.args = (_redacted_client(client), method, shown, version, status)
    return True
