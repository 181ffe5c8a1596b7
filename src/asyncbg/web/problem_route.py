"""Routes that answer their errors as problem documents in any application, and bound the bodies they read."""

import json
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from fastapi import APIRouter, Depends, Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from asyncbg.core.stored_text import HeavyJsonError, require_light
from asyncbg.errors import ErrorItem
from asyncbg.web.access_log import note_library_request
from asyncbg.web.inputs import refuse_unknown_query, takes_body
from asyncbg.web.problems import answer_error, problem_docs

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

MAX_BODY_BYTES = 1024 * 1024

_BODILESS = frozenset({"GET", "HEAD"})
_JSON = re.compile(r"application/([\w.!#$&^-]+\+)?json")
_JSON_TYPE = "application/json"
_MAX_VALUES, _MAX_CONTAINERS = 200_000, 20_000


class ProblemRoute(APIRoute):
    """A route that answers its errors as problem documents in any application, and HEAD requests without a body.

    It refuses bodies of more than ``max_body_bytes`` with 413, whatever limit the application has and whether or not
    the length is announced; :func:`limited_to` returns a class with another limit. It refuses compressed bodies, and
    bodies other than JSON where JSON is expected, with 415. It refuses query parameters that the route does not have,
    and a body where it takes none, with 422 unless ``strict_query`` is off.
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
        if self.strict_query:
            checks = [Depends(refuse_unknown_query)]
            if not _BODILESS.issuperset(
                options.get("methods") or _BODILESS
            ):  # each dependency costs an open stream 2 KiB
                checks.append(Depends(_refuse_unknown_body))
            dependencies = [*checks, *(dependencies or ())]
            responses = {**problem_docs(422), **(responses or {})}
        super().__init__(path, endpoint, dependencies=dependencies, responses=responses, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler; a request that may have a body is passed to it as one whose JSON is bounded."""
        serve = super().get_route_handler()

        async def serve_bounded(request: Request) -> Response:
            return await serve(_BoundedRequest(request.scope, request.receive, request._send))

        return serve if _BODILESS.issuperset(self.methods or ()) else serve_bounded

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request with our error handlers instead of the application's."""
        note_library_request(scope, self.path_format)
        scope["starlette.exception_handlers"] = ({Exception: answer_error}, {})
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
        except HTTPException as error:  # a large body, or a method that is not allowed: raised outside our handlers
            response = await answer_error(Request(scope), error)
            await response(scope, receive, send)


def limited_to(max_bytes: int) -> type[ProblemRoute]:
    """Return a ProblemRoute class that accepts bodies of up to ``max_bytes``."""
    return type("LimitedRoute", (ProblemRoute,), {"max_body_bytes": max_bytes})


def get_and_head(router: APIRouter, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Register GET and HEAD; only GET is in the OpenAPI document, where an operation's id has to be unique."""

    def register(endpoint: Endpoint) -> Endpoint:
        router.head(path, include_in_schema=False)(endpoint)
        return router.get(path, **options)(endpoint)

    return register


def headless(send: Send) -> Send:
    """Return a ``send`` for a HEAD request: the headers of GET without the body (RFC 9110, 9.3.2)."""

    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


class _BoundedRequest(Request):
    """A request whose JSON body has a bounded number of values."""

    async def json(self) -> Any:
        """Return the body as JSON. Raise HTTPException, 413, where it has too many values."""
        if not hasattr(self, "_json"):
            self._json = read_body(await self.body())
        return self._json


def read_body(body: bytes) -> Any:
    """Return a request's body as JSON. Raise ValueError, and HTTPException, 413, where it has too many values."""
    try:
        require_light(body, most_values=_MAX_VALUES, most_containers=_MAX_CONTAINERS)
    except HeavyJsonError as error:
        raise HTTPException(413, f"the body {error}") from None
    return json.loads(body)


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return a ``receive`` that raises HTTPException, 413, once more than ``limit`` bytes have come."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return receive_bounded


def _refuse_announced(headers: Headers, limit: int) -> None:
    """Refuse a Content-Length above the limit before any of the body is read."""
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) >= 20 or int(length) > limit):
        raise _too_large(limit)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body should not be larger than {limit:,} bytes")


def _refuse_coding(headers: Headers) -> None:
    """Refuse compressed bodies, so that no decompression bomb can be sent (RFC 9110, 15.5.16)."""
    codings = {coding.strip().lower() for line in headers.getlist("content-encoding") for coding in line.split(",")}
    if _has_body(headers) and codings - {"identity", ""}:
        detail = "the body should not be compressed; send it without Content-Encoding"
        raise HTTPException(415, detail, {"Accept-Encoding": "identity"})


def refuse_media_type(headers: Headers, *, also: str = "") -> None:
    """Refuse a body that is not JSON (RFC 9110, 15.5.16; RFC 6839, 3.1); the error names ``also`` as allowed too."""
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if _has_body(headers) and not _JSON.fullmatch(media):
        accepted = [kind for kind in (_JSON_TYPE, also) if kind]
        detail = f"the body should come with Content-Type: {' or '.join(accepted)}"
        raise HTTPException(415, detail, {"Accept": ", ".join(accepted)})


async def _refuse_unknown_body(request: Request) -> None:
    """Refuse a body where none is declared or documented, unless it is an empty object or only repeats the path."""
    if takes_body(request) or not _has_body(request.headers) or not await request.body():
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
