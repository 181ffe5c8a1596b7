"""Errors as RFC 9457 problem documents: what went wrong and what to do about it, without repeating the input.

The standalone service calls :func:`install_problems`. A router inside another application uses
:class:`~asyncbg.web.problem_route.ProblemRoute` as its ``route_class`` instead: the answers are the same, and the
application's own error handlers stay as they are.
"""

import http
import json
import logging
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from asyncbg.core.validation_errors import clean_error
from asyncbg.errors import (
    ArgumentsError,
    AsyncBGError,
    AuthError,
    BadCursorError,
    CrossSiteError,
    DatabaseError,
    ErrorItem,
    ForeignHostError,
    IdempotencyError,
    JobNotFoundError,
    JobStateError,
    NotRunningError,
    OptionsError,
    OverloadedError,
    OversizeArgumentsError,
    QuotaError,
    ScopeError,
    TaskError,
    UnauthenticatedError,
    UnknownTaskError,
)
from asyncbg.privacy import redact
from asyncbg.web.path_redaction import PATH_CHARS, marked_parameters, path_words, redact_unknown_path

MEDIA_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_RETRY_AFTER_S = 1.0
_MAX_ERRORS = 100
_PLAIN_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem document. ``kind`` is the last part of ``type``; ``extra`` are extension members (RFC 9457, 3.2)."""

    status: int
    kind: str = ""
    title: str = ""
    detail: str = ""
    errors: Sequence[ErrorItem] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, instance: str) -> dict[str, Any]:
        """Return the JSON members, in the order of the RFC."""
        members: dict[str, Any] = {
            "type": f"urn:problem-type:asyncbg:{self.kind}" if self.kind else "about:blank",
            "title": self.title or _phrase(self.status),
            "status": self.status,
        }
        members["detail"] = self.detail or _PLAIN_DETAILS.get(self.status) or members["title"]
        members["instance"] = instance
        if self.errors:
            members["errors"] = self.errors
        return {**members, **self.extra}


def problem_response(request: Request, problem: Problem) -> Response:
    """Return the response to ``request`` with ``problem``."""
    text = json.dumps(problem.body(_instance(request, problem.errors)), ensure_ascii=False, separators=(",", ":"))
    headers = {"Cache-Control": "no-store", **problem.headers}
    return Response(text.encode(errors="replace"), problem.status, headers, MEDIA_TYPE)


def problem_for(error: Exception) -> Problem:  # noqa: C901 - one row for each error
    """Return the problem document for ``error``; an unexpected error is a 500 without any detail of it."""
    match error:
        case RequestValidationError() if _is_malformed(error):
            return Problem(status=400, detail="the body should be valid JSON")
        case RequestValidationError():
            return _invalid("invalid-request", "Invalid request", error.errors())
        case OptionsError():
            item = ErrorItem(loc=["body", error.option.rstrip("=")], msg=error.msg, type="option")
            return _invalid("invalid-request", "Invalid request", [item])
        case ArgumentsError():
            return _invalid("invalid-arguments", "Invalid task arguments", error.errors)
        case HTTPException():
            return _http(error)
        case AuthError():
            return _refused(error)
        case BadCursorError():
            item = ErrorItem(loc=["query", "cursor"], msg=str(error), type="cursor")
            return _invalid("invalid-request", "Invalid request", [item])
        case JobNotFoundError():
            detail = "there is no such job, or it is not yours; it may have been purged"
            return Problem(status=404, kind="job-not-found", title="Job not found", detail=detail)
        case UnknownTaskError():
            detail = f"no task of that name is registered; known: {', '.join(error.known) or 'none'}"
            extra = {"known": error.known}
            return Problem(status=404, kind="unknown-task", title="Unknown task", detail=detail, extra=extra)
        case JobStateError():
            title = "Job state conflict"
            return Problem(status=409, kind="job-state", title=title, detail=str(error), extra={"state": error.state})
        case IdempotencyError():
            detail = "this idempotency key was used before with another request; use a new key"
            return Problem(status=422, kind="idempotency-key-reused", title="Idempotency key reused", detail=detail)
        case QuotaError():
            too_many = _retry_later("quota", "Owner's job quota exceeded", str(error), error.retry_after_s)
            return replace(too_many, status=429)
        case OverloadedError():
            return _retry_later("overloaded", "Service overloaded", str(error), error.retry_after_s)
        case DatabaseError():
            detail = "the database cannot be used now; nothing was stored"
            return _retry_later("database-unavailable", "Database unavailable", detail, _RETRY_AFTER_S)
        case NotRunningError():
            detail = "the service is starting or stopping"
            return _retry_later("not-running", "Service not running", detail, _RETRY_AFTER_S)
        case _:
            return Problem(status=500)


def http_exception_for(error: AsyncBGError) -> HTTPException:
    """Return the exception that a route of an application raises for ``error``: with the status of its problem.

    Oversize arguments are answered with 413, since the route takes more from the request than a job can store.
    """
    problem = problem_for(error)
    status = 413 if isinstance(error, OversizeArgumentsError) else problem.status
    detail = str(error) if isinstance(error, TaskError) else problem.detail
    return HTTPException(status, detail, dict(problem.headers))


def problem_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route for its error statuses: description, schema and an example of each."""
    return {
        status: {
            "description": _phrase(status),
            "content": {MEDIA_TYPE: {"schema": _SCHEMA, "example": Problem(status=status).body("/jobs")}},
        }
        for status in statuses
    }


def install_problems(app: FastAPI) -> None:
    """Make ``app`` answer every error as a problem document.

    An unexpected error outside a ProblemRoute is logged by the server: Starlette raises it again after the response.
    """
    for kind in (RequestValidationError, HTTPException, AsyncBGError):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(Exception, _answer_unlogged)


async def answer_error(request: Request, error: Exception) -> Response:
    """Return the response to an error, and log an unexpected one."""
    if not isinstance(error, HTTPException) and problem_for(error).status == http.HTTPStatus.INTERNAL_SERVER_ERROR:
        # Only the frames: the message of an exception may quote the request.
        frames = "".join(traceback.format_tb(error.__traceback__))
        _log.error("%s %s failed with %s\n%s", request.method, _template(request), type(error).__name__, frames)
    return await _answer_unlogged(request, error)


async def _answer_unlogged(request: Request, error: Exception) -> Response:
    problem = problem_for(error)
    if problem.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        problem = replace(problem, headers={**problem.headers, "Allow": _allowed(request, problem.headers)})
    return problem_response(request, problem)


def _invalid(kind: str, title: str, errors: Sequence[Mapping[str, Any]]) -> Problem:
    items = [clean_error(item) for item in errors[:_MAX_ERRORS]]
    detail = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'request'}: {item['msg']}" for item in items[:3])
    return Problem(status=422, kind=kind, title=title, detail=detail, errors=items)


_PLAIN_DETAILS = {
    404: "no route has this path; /openapi.json lists all routes",
    405: "the method is not allowed for this path; the Allow header lists the allowed ones",
    500: "internal server error; see the server log",
}


def _http(error: HTTPException) -> Problem:
    detail: object = error.detail  # FastAPI's HTTPException takes anything
    text = detail if isinstance(detail, str) and detail != http.HTTPStatus(error.status_code).phrase else ""
    return Problem(status=error.status_code, detail=text, headers=error.headers or {})


def _refused(error: AuthError) -> Problem:
    """401 with a challenge, 403 otherwise (RFC 6750, section 3)."""
    detail = str(error)
    match error:
        case UnauthenticatedError():
            challenge = 'Bearer error="invalid_token"' if error.is_wrong else "Bearer"
            headers = {"WWW-Authenticate": challenge}
            return Problem(
                status=401, kind="unauthenticated", title="Authentication required", detail=detail, headers=headers
            )
        case ScopeError():
            headers = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{error.scope}"'}
            extra = {"scope": error.scope}
            return Problem(
                status=403,
                kind="missing-scope",
                title="Insufficient scope",
                detail=detail,
                headers=headers,
                extra=extra,
            )
        case CrossSiteError():
            return Problem(status=403, kind="cross-site", title="Cross-site request refused", detail=detail)
        case ForeignHostError():
            return Problem(status=403, kind="foreign-host", title="Remote access refused", detail=detail)
        case _:
            return Problem(status=403)


def _retry_later(kind: str, title: str, detail: str, retry_after_s: float) -> Problem:
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return Problem(status=503, kind=kind, title=title, detail=detail, headers=headers)


def _instance(request: Request, errors: Sequence[ErrorItem]) -> str:
    """Return the path without the query; a parameter that was refused or may be personal is replaced by its name."""
    scope = request.scope
    if "endpoint" not in scope:
        return redact_unknown_path(scope["path"], frozenset(path_words(scope["app"].routes)))
    path: str = scope["path"]
    refused = {item["loc"][1] for item in errors if item["loc"][:1] == ["path"] and len(item["loc"]) > 1}
    hidden = refused | marked_parameters(scope["endpoint"]).keys()
    for name, value in request.path_params.items():
        if name in hidden or not _PLAIN_SEGMENT.fullmatch(str(value)):
            path = path.replace(f"/{value}", f"/{{{name}}}", 1)
    return quote(redact(path), safe=PATH_CHARS, errors="replace")


def _template(request: Request) -> str:
    """Return the path of the matched route for the log: with the names of its parameters, not their values."""
    return str(getattr(request.scope.get("route"), "path", "a request"))


def _allowed(request: Request, headers: Mapping[str, str]) -> str:
    """Return all methods of a path (RFC 9110, 10.2.1): several routes may have it, and each knows only its own."""
    allowed = {method.strip() for method in headers.get("Allow", "").split(",") if method.strip()}
    for method in _METHODS:
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in getattr(request.scope.get("app"), "routes", ())):
            allowed.add(method)
    return ", ".join(sorted(allowed))


def _is_malformed(error: RequestValidationError) -> bool:
    """Whether the whole body is malformed JSON, and not only a text within it that should hold JSON."""
    return any(
        item["type"] == "json_invalid" and item["loc"][0] == "body" and _is_whole(item) for item in error.errors()
    )


def _is_whole(item: Mapping[str, Any]) -> bool:
    return all(isinstance(part, int) for part in item["loc"][1:])


def _phrase(status: int) -> str:
    if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return "Content Too Large"
    if status == http.HTTPStatus.UNPROCESSABLE_ENTITY:
        return "Unprocessable Content"
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"


_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "An error as RFC 9457 describes it.",
    "type": "object",
    "required": ["type", "title", "status", "instance"],
    "properties": {
        "type": {"type": "string", "description": "the kind of error, or about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "what happened and what to do about it"},
        "instance": {"type": "string", "description": "the path of the request, without personal data"},
        "errors": {
            "type": "array",
            "description": "what is wrong with the input; never the input itself",
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
    },
}
