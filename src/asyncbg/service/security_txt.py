"""``/.well-known/security.txt``: whom to tell of a hole in the service (RFC 9116)."""

from typing import Final

from fastapi import APIRouter, HTTPException
from fastapi.responses import PlainTextResponse

from asyncbg.auth.access import Access, asks
from asyncbg.core.clock import Clock, rfc3339
from asyncbg.web.problems import ProblemRoute, get_and_head

_DAY_MS: Final = 86_400_000
_GOOD_FOR_DAYS: Final = 30


def security_txt_router(contact: str | None, *, clock: Clock) -> APIRouter:
    """The route of the file; 404 where nobody is named as the contact, without whom there is no such file.

    ``Expires`` is thirty days after the day it is asked for, so a service that runs is never out of date (section 2.5.5
    recommends less than a year).
    """
    router = APIRouter(route_class=ProblemRoute)

    @get_and_head(router, "/.well-known/security.txt", include_in_schema=False)
    @asks(Access.OPEN)
    async def show_security_txt() -> PlainTextResponse:
        """Contact and expiry, the two fields that have to be there."""
        if contact is None:
            raise HTTPException(404, "nobody is named to be told; who runs this sets ASYNCBG_SERVER__SECURITY_CONTACT")
        now_ms = clock.now_ms()
        expires = rfc3339(now_ms - now_ms % _DAY_MS + _GOOD_FOR_DAYS * _DAY_MS)
        text = f"Contact: {contact}\nExpires: {expires}\nPreferred-Languages: en\n"
        return PlainTextResponse(text, headers={"Cache-Control": "max-age=86400"})

    return router
