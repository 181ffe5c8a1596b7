"""Security headers: on every answer of the service, whoever wrote it, also on the 500 of a mistake."""

import base64
import hashlib
from collections.abc import Awaitable
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncbg.web.access_log import remember

_UNUSED: Final = ("camera", "display-capture", "geolocation", "microphone", "payment", "usb")
"""What a page of ours never asks a browser for, and what it embeds may not ask for either."""


def content_policy(*, style: str | None = None, forms: str = "'none'") -> str:
    """A Content-Security-Policy that allows one inline style, by its hash, and forms to ``forms``, or nothing at all.

    Never ``unsafe-*``.
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
"""What an answer says unless it says it itself: a page brings the policy that lets its own style in."""

RAW_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class SecurityHeaders:
    """ASGI middleware that adds what an answer lacks of :data:`SECURITY_HEADERS`.

    It looks at the first message only. The ``send`` it puts before the server's is no coroutine, so that the thousandth
    event of a stream costs one comparison more than it would without.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Stand before ``app``."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let ``app`` answer."""
        if scope["type"] == "http":
            remember(scope)
            send = _complete(send)
        await self._app(scope, receive, send)


class ServiceApp(FastAPI):
    """FastAPI with :class:`SecurityHeaders` before everything, where ``add_middleware`` cannot put it.

    The answer to an error nobody foresaw is made before all middleware that is added the usual way.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """The application as the server calls it."""
        return SecurityHeaders(super().build_middleware_stack())


def _complete(send: Send) -> Send:
    def send_complete(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            named = {name.lower() for name, _ in given}
            message = {**message, "headers": given + [header for header in RAW_HEADERS if header[0] not in named]}
        return send(message)

    return send_complete
