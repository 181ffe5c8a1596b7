"""Sign-in with an API key: a page for browsers without scripts, and its session."""

import html
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, Field

from asyncbg.auth.access import Access, requires
from asyncbg.auth.audit import Audit, AuditOutcome
from asyncbg.auth.authenticator import COOKIE, Authenticator
from asyncbg.auth.caller import NO_CALLER, Caller, get_caller
from asyncbg.auth.keys import KeyRecord
from asyncbg.auth.sessions import Session
from asyncbg.core.clock import Clock, rfc3339
from asyncbg.errors import UnauthenticatedError
from asyncbg.web.inputs import refuse_input
from asyncbg.web.problem_route import get_and_head, limited_to, refuse_media_type
from asyncbg.web.problems import problem_docs
from asyncbg.web.schemas import no_store
from asyncbg.web.start_page import LINKS, navigation, start_page

_MAX_BODY_BYTES: Final = 4_096
_FORM: Final = "application/x-www-form-urlencoded"
_SIGN_IN: Final = """{alert}<form method="post" action="session">
<p><label for="key">API key</label><br>
<input id="key" name="key" type="password" autocomplete="current-password" required size="56"></p>
<p><button type="submit">Sign in</button></p>
</form>"""
_SIGNED_IN: Final = """<p>Signed in as <strong>{owner}</strong>.</p>
<form method="post" action="sign-out"><p><button type="submit">Sign out</button></p></form>
"""
_LINKS: Final = navigation({"docs": "API documentation", **LINKS})
_ALERT: Final = '<p role="alert">There is no such API key; it may be mistyped, expired or revoked.</p>\n'
_SEE_OTHER: Final[dict[int | str, dict[str, Any]]] = {303: {"description": "After a form: redirect to the first page"}}
_UNKNOWN: Final[dict[str, Any]] = {
    **problem_docs(401)[401],
    "content": {**problem_docs(401)[401]["content"], "text/html": {"schema": {"type": "string"}}},
}
_BODY_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {
                "schema": {
                    "type": "object",
                    "required": ["key"],
                    "properties": {"key": {"type": "string", "format": "password"}},
                }
            }
            for kind in ("application/json", _FORM)
        },
    }
}


class SessionOut(BaseModel):
    """The session of a browser; its token is only in the cookie."""

    owner: str = Field(description="the name of the key", examples=["ada"])
    scopes: list[str] = Field(examples=[["read", "submit"]])
    expires_at: str = Field(examples=["2026-11-22T22:15:00.250Z"])


@dataclass(frozen=True, slots=True)
class _Credentials:
    """A submitted key: whether a form sent it, and whether the client accepts HTML."""

    key: str
    by_form: bool
    wants_page: bool


def sign_in_router(authenticator: Authenticator, audit: Audit, *, clock: Clock) -> APIRouter:
    """Return the routes ``GET /``, ``POST`` and ``DELETE /session``, and ``POST /sign-out`` for forms."""
    router = APIRouter(route_class=limited_to(_MAX_BODY_BYTES), tags=["operations"], dependencies=[Depends(no_store)])

    @get_and_head(router, "/", response_class=HTMLResponse, include_in_schema=False)
    @requires(Access.OPTIONAL)
    async def show_first_page(request: Request) -> HTMLResponse:
        """Return the sign-in form, or links for a signed-in caller."""
        return _page(get_caller(request) or NO_CALLER)

    @router.post(
        "/session",
        status_code=201,
        response_model=SessionOut,
        responses={**_SEE_OTHER, **problem_docs(400, 403, 413, 415, 422, 503), 401: _UNKNOWN},
        openapi_extra=_BODY_DOCS,
    )
    @requires(Access.OPEN)
    async def sign_in(credentials: Annotated[_Credentials, Depends(_read_credentials)], response: Response) -> Any:
        """Create a session and set its cookie; the session ends when the key expires or is revoked."""
        try:
            token, session, record = await authenticator.sign_in(credentials.key)
        except UnauthenticatedError:
            audit.refuse("session.begin", who="?", reason="unknown key")
            if credentials.by_form and credentials.wants_page:
                return _page(NO_CALLER, status_code=401, alert=_ALERT, headers={"WWW-Authenticate": "Bearer"})
            raise
        await audit.record("session.begin", who=record.name, outcome=AuditOutcome.DONE)
        answer: Any = RedirectResponse("./", 303, {"Cache-Control": "no-store"}) if credentials.by_form else response
        age_s = max(1, (session.expires_ms - clock.now_ms()) // 1000)
        answer.set_cookie(COOKIE, token, max_age=age_s, path="/", secure=True, httponly=True, samesite="strict")
        return answer if credentials.by_form else _out(record, session)

    @router.delete("/session", status_code=204, responses=problem_docs(413, 415, 503))
    @requires(Access.AUTHENTICATED)
    async def sign_out(request: Request) -> Response:
        """End the session on the server and delete the cookie."""
        return await _end_session(request, Response(status_code=204))

    @router.post("/sign-out", include_in_schema=False)
    @requires(Access.AUTHENTICATED)
    async def sign_out_by_form(request: Request) -> Response:
        """End the session for an HTML form, which cannot send DELETE."""
        return await _end_session(request, RedirectResponse("./", 303))

    async def _end_session(request: Request, answer: Response) -> Response:
        caller = get_caller(request)
        if caller is not None and caller.session_id is not None:
            await authenticator.sign_out(caller)
            await audit.record("session.end", who=caller.owner)
        answer.headers["Cache-Control"] = "no-store"
        answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return answer

    return router


async def _read_credentials(request: Request) -> _Credentials:
    """Read the key from a small JSON or form body. Errors never quote it."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != _FORM:
        refuse_media_type(request.headers, also=_FORM)
    fields = _fields(await request.body(), by_form=media == _FORM)
    for name in fields:
        if name != "key":
            raise refuse_input(("body", name), "is not a field of this body; send only key", "extra_forbidden")
    key = fields.get("key")
    if not isinstance(key, str) or not key:
        raise refuse_input(("body", "key"), "should be an API key", "key")
    return _Credentials(key, media == _FORM, "text/html" in request.headers.get("accept", ""))


def _fields(body: bytes, *, by_form: bool) -> dict[str, object]:
    """Return the fields of a body; a repeated form field is None. Answers 400 or 422 for a malformed body."""
    try:
        if by_form:
            return {
                name: sent[0] if len(sent) == 1 else None
                for name, sent in parse_qs(body.decode("ascii"), keep_blank_values=True).items()
            }
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise HTTPException(400, f"the body should be valid {'form data' if by_form else 'JSON'}") from None
    if not isinstance(value, dict):
        raise refuse_input(("body",), "should be a JSON object", "dict_type")
    return value


def _out(record: KeyRecord, session: Session) -> SessionOut:
    return SessionOut(owner=record.name, scopes=sorted(record.scopes), expires_at=rfc3339(session.expires_ms))


def _page(
    caller: Caller, *, status_code: int = 200, alert: str = "", headers: dict[str, str] | None = None
) -> HTMLResponse:
    signed_in = _SIGNED_IN.format(owner=html.escape(caller.owner)) if caller.session_id is not None else ""
    body = signed_in + _LINKS if caller.scopes else _SIGN_IN.format(alert=alert)
    answer = {"Cache-Control": "no-store", **(headers or {})}
    return start_page(body, forms="'self'", status_code=status_code, headers=answer)
