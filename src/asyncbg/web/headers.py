"""Security headers on every response of the service, also on the 500 of an unexpected error."""

import base64
import hashlib
from collections.abc import Awaitable
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncbg.web.access_log import set_request

_UNUSED: Final = ("camera", "display-capture", "geolocation", "microphone", "payment", "usb")
"""Browser features that no page of the service uses."""


def content_policy(*, style: str | None = None, forms: str = "'none'") -> str:
    """Return a Content-Security-Policy that allows one inline style, by its hash, and forms to ``forms``.

    Without arguments it allows nothing. It never contains ``unsafe-*``.
    """
    allowed = ""
    if style is not None:
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        allowed = f"style-src 'sha256-{digest}'; "
    return f"default-src 'none'; {allowed}base-uri 'none'; form-action {forms}; frame-ancestors 'none'"


SECURITY_HEADERS: Final = {
    "Content-Security-Policy": content_policy(),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in _UNUSED),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""The headers of a response that does not set them itself: a page sets the policy that allows its own style."""

RAW_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class SecurityHeaders:
    """ASGI middleware that adds the missing :data:`SECURITY_HEADERS` to every response.

    It changes only the first message of a response. Its ``send`` is not a coroutine function, so that each further
    event of a stream costs no more than one comparison.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application."""
        if scope["type"] == "http":
            set_request(scope)
            send = _complete(send)
        await self._app(scope, receive, send)


class ServiceApp(FastAPI):
    """FastAPI with :class:`SecurityHeaders` outside of all other middleware, where ``add_middleware`` cannot put it.

    Starlette answers an unexpected error outside of the middleware that is added the usual way.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """Return the ASGI application with all middleware."""
        return SecurityHeaders(super().build_middleware_stack())


def _complete(send: Send) -> Send:
    def send_complete(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            named = {name.lower() for name, _ in given}
            message = {**message, "headers": given + [header for header in RAW_HEADERS if header[0] not in named]}
        return send(message)

    return send_complete
