"""Errors as RFC 9457 problem documents: what a caller is told when something is wrong, never what the caller sent.

The standalone service calls :func:`install_problems`. A router that lives in somebody else's app uses
:class:`ProblemRoute` as its ``route_class`` instead: the answers are the same, the app's own handlers are not touched.
"""

import http
import json
import logging
import math
import re
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from asyncbg.core.json_text import HeavyJsonError, require_light
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
    QuotaError,
    ScopeError,
    UnauthenticatedError,
    UnknownTaskError,
)
from asyncbg.privacy import redact
from asyncbg.web.access_log import note_ours
from asyncbg.web.shown_path import PATH_CHARS, hide_unknown, kinds_of, words_of
from asyncbg.web.strict_query import refuse_unknown_query, takes_body

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

MEDIA_TYPE = "application/problem+json"
MAX_BODY_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)

_BODILESS = frozenset({"GET", "HEAD"})
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_DATABASE_RETRY_AFTER_S = 1.0
_MOST_ERRORS = 100
_JSON = re.compile(r"application/([\w.!#$&^-]+\+)?json")
_TAKEN = "application/json"
_MOST_VALUES, _MOST_CONTAINERS = 200_000, 20_000
_PLAIN_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem document. ``kind`` ends its ``type``; ``extra`` are its extension members (RFC 9457, 3.2)."""

    status: int
    kind: str = ""
    title: str = ""
    detail: str = ""
    errors: Sequence[ErrorItem] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, instance: str) -> dict[str, Any]:
        """The JSON members, in the order of the RFC."""
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
    """Answer ``request`` with ``problem``."""
    text = json.dumps(problem.body(_instance(request, problem.errors)), ensure_ascii=False, separators=(",", ":"))
    headers = {"Cache-Control": "no-store", **problem.headers}
    return Response(text.encode(errors="replace"), problem.status, headers, MEDIA_TYPE)


def describe(error: Exception) -> Problem:  # noqa: C901 - one row for each error
    """What a caller is told of ``error``; anything unforeseen is a 500 that tells nothing."""
    match error:
        case RequestValidationError() if _is_malformed(error):
            return Problem(status=400, detail="the body should be valid JSON")
        case RequestValidationError():
            return _invalid("invalid-request", "The request is not valid", error.errors())
        case OptionsError():
            item = ErrorItem(loc=["body", error.option.rstrip("=")], msg=error.msg, type="option")
            return _invalid("invalid-request", "The request is not valid", [item])
        case ArgumentsError():
            return _invalid("invalid-arguments", "The arguments do not fit the task", error.errors)
        case HTTPException():
            return _http(error)
        case AuthError():
            return _refused(error)
        case BadCursorError():
            item = ErrorItem(loc=["query", "cursor"], msg=str(error), type="cursor")
            return _invalid("invalid-request", "The request is not valid", [item])
        case JobNotFoundError():
            detail = "there is no such job, or it is not yours; it may have been purged"
            return Problem(status=404, kind="job-not-found", title="No such job", detail=detail)
        case UnknownTaskError():
            detail = f"no task of that name is registered; known: {', '.join(error.known) or 'none'}"
            extra = {"known": error.known}
            return Problem(status=404, kind="unknown-task", title="No such task", detail=detail, extra=extra)
        case JobStateError():
            title = "The job's state forbids it"
            return Problem(status=409, kind="job-state", title=title, detail=str(error), extra={"state": error.state})
        case IdempotencyError():
            detail = "this idempotency key was used before with another request; use a new key"
            return Problem(status=422, kind="idempotency-key-reused", title="Idempotency key reused", detail=detail)
        case QuotaError():
            too_many = _come_back("quota", "Too many jobs of one owner", str(error), error.retry_after_s)
            return replace(too_many, status=429)
        case OverloadedError():
            return _come_back("overloaded", "Too much at once", str(error), error.retry_after_s)
        case DatabaseError():
            detail = "the database cannot be used now; nothing was stored"
            return _come_back("database-unavailable", "Database unavailable", detail, _DATABASE_RETRY_AFTER_S)
        case NotRunningError():
            detail = "the service is starting or stopping"
            return Problem(status=503, kind="not-running", title="Not running", detail=detail)
        case _:
            return Problem(status=500)


def problem_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route for its error statuses: descriptions, the schema and an example of each."""
    return {
        status: {
            "description": _phrase(status),
            "content": {MEDIA_TYPE: {"schema": _SCHEMA, "example": Problem(status=status).body("/jobs")}},
        }
        for status in statuses
    }


class ProblemRoute(APIRoute):
    """A route that answers its errors as problem documents in any app, and its HEAD requests without a body.

    It takes no body larger than ``max_body_bytes``, whether its length is announced or not, whatever the app takes: 413
    otherwise, and :func:`limited_to` makes one with another limit. A compressed body, or another than JSON where that
    is read, is answered with 415. A query that the route does not know, and a body where it takes none, are answered
    with 422 unless ``strict_query`` is off.
    """

    max_body_bytes: ClassVar[int] = MAX_BODY_BYTES
    strict_query: ClassVar[bool] = True

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        dependencies: Sequence[params.Depends] | None = None,
        responses: dict[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """As FastAPI's own."""
        if self.strict_query:
            dependencies = [Depends(refuse_unknown_query), Depends(_refuse_unknown_body), *(dependencies or ())]
            responses = {**problem_docs(422), **(responses or {})}
        super().__init__(path, endpoint, dependencies=dependencies, responses=responses, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Serve a request that may have a body as one whose JSON is bounded."""
        serve = super().get_route_handler()

        async def serve_bounded(request: Request) -> Response:
            return await serve(_BoundedRequest(request.scope, request.receive, request._send))

        return serve if _BODILESS.issuperset(self.methods or ()) else serve_bounded

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request with our error handlers in the place of the app's."""
        note_ours(scope, self.path_format)
        scope["starlette.exception_handlers"] = ({Exception: _answer}, {})
        receive = _bounded(receive, self.max_body_bytes)
        if scope["method"] == "HEAD":
            send = headless(send)
        try:
            _refuse_announced(Headers(scope=scope), self.max_body_bytes)
            if scope["method"] not in _BODILESS:
                _refuse_coding(Headers(scope=scope))
            if self.body_field is not None and scope["method"] in (self.methods or ()):
                refuse_media_type(Headers(scope=scope))
            await super().handle(scope, receive, send)
        except HTTPException as error:  # too much, or the method is not allowed: raised outside our handlers
            response = await _answer(Request(scope), error)
            await response(scope, receive, send)


class _BoundedRequest(Request):
    """A request whose JSON is made of a bounded number of parts."""

    async def json(self) -> Any:
        """The body as JSON. Raises HTTPException, 413, where it is made of too many parts."""
        if not hasattr(self, "_json"):
            self._json = read_body(await self.body())
        return self._json


def read_body(body: bytes) -> Any:
    """A request's body as JSON. Raises ValueError, and HTTPException, 413, where it is made of too many parts."""
    try:
        require_light(body, most_values=_MOST_VALUES, most_containers=_MOST_CONTAINERS)
    except HeavyJsonError as error:
        raise HTTPException(413, f"the body {error}") from None
    return json.loads(body)


def limited_to(max_bytes: int) -> type[ProblemRoute]:
    """A ProblemRoute that takes bodies of up to ``max_bytes``."""
    return type("LimitedRoute", (ProblemRoute,), {"max_body_bytes": max_bytes})


def get_and_head(router: APIRouter, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Serve GET and HEAD; only GET is in the OpenAPI document, where an operation's id may stand once."""

    def register(endpoint: Endpoint) -> Endpoint:
        router.head(path, include_in_schema=False)(endpoint)
        return router.get(path, **options)(endpoint)

    return register


def install_problems(app: FastAPI) -> None:
    """Let ``app`` answer every error as a problem document. For an app of our own.

    An unforeseen error outside a ProblemRoute is logged by the server, to which Starlette hands it on.
    """
    for kind in (RequestValidationError, HTTPException, AsyncBGError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(Exception, _answer_unlogged)


async def _answer(request: Request, error: Exception) -> Response:
    """The response to an error, logged once if nobody foresaw it."""
    if not isinstance(error, HTTPException) and describe(error).status == http.HTTPStatus.INTERNAL_SERVER_ERROR:
        # The frames only: an exception's message may quote what the caller sent.
        frames = "".join(traceback.format_tb(error.__traceback__))
        _log.error("%s %s failed with %s\n%s", request.method, _template(request), type(error).__name__, frames)
    return await _answer_unlogged(request, error)


async def _answer_unlogged(request: Request, error: Exception) -> Response:
    problem = describe(error)
    if problem.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        problem = replace(problem, headers={**problem.headers, "Allow": _allowed(request, problem.headers)})
    return problem_response(request, problem)


def _invalid(kind: str, title: str, errors: Sequence[Mapping[str, Any]]) -> Problem:
    items = [clean_error(item) for item in errors[:_MOST_ERRORS]]
    detail = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'request'}: {item['msg']}" for item in items[:3])
    return Problem(status=422, kind=kind, title=title, detail=detail, errors=items)


_PLAIN_DETAILS = {
    404: "there is nothing at this path; /openapi.json lists all there is",
    405: "this path does not take that method; the Allow header names those it takes",
    500: "a mistake of the server's; its log tells more",
}


def _http(error: HTTPException) -> Problem:
    detail: object = error.detail  # FastAPI's HTTPException takes anything
    told = detail if isinstance(detail, str) and detail != http.HTTPStatus(error.status_code).phrase else ""
    return Problem(status=error.status_code, detail=told, headers=error.headers or {})


def _refused(error: AuthError) -> Problem:
    """401 with a challenge, 403 otherwise (RFC 6750, section 3)."""
    detail = str(error)
    match error:
        case UnauthenticatedError():
            challenge = 'Bearer error="invalid_token"' if error.is_wrong else "Bearer"
            headers = {"WWW-Authenticate": challenge}
            return Problem(
                status=401, kind="unauthenticated", title="Credentials are needed", detail=detail, headers=headers
            )
        case ScopeError():
            headers = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{error.scope}"'}
            extra = {"scope": error.scope}
            return Problem(
                status=403,
                kind="missing-scope",
                title="A scope is missing",
                detail=detail,
                headers=headers,
                extra=extra,
            )
        case CrossSiteError():
            return Problem(status=403, kind="cross-site", title="Sent by another site", detail=detail)
        case ForeignHostError():
            return Problem(status=403, kind="foreign-host", title="Not from this machine", detail=detail)
        case _:
            return Problem(status=403)


def _come_back(kind: str, title: str, detail: str, retry_after_s: float) -> Problem:
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return Problem(status=503, kind=kind, title=title, detail=detail, headers=headers)


def _instance(request: Request, errors: Sequence[ErrorItem]) -> str:
    """The path, without the query; a parameter that was refused or may be personal is shown by its name only."""
    scope = request.scope
    if "endpoint" not in scope:
        return hide_unknown(scope["path"], frozenset(words_of(scope["app"].routes)))
    path: str = scope["path"]
    refused = {item["loc"][1] for item in errors if item["loc"][:1] == ["path"] and len(item["loc"]) > 1}
    hidden = refused | kinds_of(scope["endpoint"]).keys()
    for name, value in request.path_params.items():
        if name in hidden or not _PLAIN_SEGMENT.fullmatch(str(value)):
            path = path.replace(f"/{value}", f"/{{{name}}}", 1)
    return quote(redact(path), safe=PATH_CHARS, errors="replace")


def _template(request: Request) -> str:
    """The path of the route that was taken, for the log: with the names of its parameters, not their values."""
    return str(getattr(request.scope.get("route"), "path", "a request"))


def _allowed(request: Request, headers: Mapping[str, str]) -> str:
    """All methods of a path: one route knows its own only, and a path may have several (RFC 9110, 10.2.1)."""
    allowed = {method.strip() for method in headers.get("Allow", "").split(",") if method.strip()}
    for method in _METHODS:
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in getattr(request.scope.get("app"), "routes", ())):
            allowed.add(method)
    return ", ".join(sorted(allowed))


def _refuse_announced(headers: Headers, limit: int) -> None:
    """Believe an announced length that is too large: nothing of the body is read."""
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) >= 20 or int(length) > limit):
        raise _too_large(limit)


def _refuse_coding(headers: Headers) -> None:
    """Nothing is unpacked, so that nothing can unpack without end (RFC 9110, 15.5.16)."""
    codings = {coding.strip().lower() for line in headers.getlist("content-encoding") for coding in line.split(",")}
    if _has_body(headers) and codings - {"identity", ""}:
        detail = "the body should not be compressed; send it without Content-Encoding"
        raise HTTPException(415, detail, {"Accept-Encoding": "identity"})


def refuse_media_type(headers: Headers, *, also: str = "") -> None:
    """Take no body but JSON (RFC 9110, 15.5.16; RFC 6839, 3.1 for the suffix); the error names what is ``also``."""
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if _has_body(headers) and not _JSON.fullmatch(media):
        taken = [kind for kind in (_TAKEN, also) if kind]
        detail = f"the body should come with Content-Type: {' or '.join(taken)}"
        raise HTTPException(415, detail, {"Accept": ", ".join(taken)})


async def _refuse_unknown_body(request: Request) -> None:
    """Refuse a body where none is declared or documented; an empty object, or what only repeats the path, is none."""
    is_read = request.method in _BODILESS or takes_body(request)
    if is_read or not _has_body(request.headers) or not await request.body():
        return
    refuse_media_type(request.headers)
    try:
        sent = await request.json()
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body should be valid JSON; this route takes none") from None
    fields = sent if isinstance(sent, dict) else {"": sent} if sent is not None else {}
    known = {name: str(value) for name, value in request.path_params.items()}
    unknown = [name for name, value in fields.items() if known.get(name) != str(value)]
    if unknown:
        raise RequestValidationError(
            [
                ErrorItem(loc=["body", *filter(None, [name])], msg="this route takes no body", type="extra_forbidden")
                for name in unknown
            ]
        )


def _has_body(headers: Headers) -> bool:
    return bool(headers.get("content-length", "").strip("0")) or "transfer-encoding" in headers


def _is_malformed(error: RequestValidationError) -> bool:
    """Whether the body is no JSON at all; a text in it that should have been JSON is another matter."""
    return any(
        item["type"] == "json_invalid" and item["loc"][0] == "body" and _is_whole(item) for item in error.errors()
    )


def _is_whole(item: Mapping[str, Any]) -> bool:
    return all(isinstance(part, int) for part in item["loc"][1:])


def _bounded(receive: Receive, limit: int) -> Receive:
    """Count the body as it comes."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return receive_bounded


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body should not be larger than {limit:,} bytes")


def headless(send: Send) -> Send:
    """HEAD: the headers of GET and nothing else (RFC 9110, 9.3.2)."""

    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


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
