"""Real servers for tests: a mail server that records messages, and a web server with configured responses."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, NamedTuple, Self

from aiohttp import web


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedMail:
    """One message received by the mail server: its envelope and its bytes."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @property
    def message(self) -> EmailMessage:
        """Return the parsed message."""
        return message_from_bytes(self.content, policy=policy.default)


@dataclass
class SmtpSink:
    """A mail server (aiosmtpd) that records messages.

    Each of ``replies`` is sent once instead of accepting a message: ``["451 4.3.0 try again later"]``.
    """

    host: str = "127.0.0.1"
    port: int = 0
    messages: list[ReceivedMail] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the settings for asyncbg's mailer: ``load_settings(smtp=bg_smtp.settings)``."""
        return {"host": self.host, "port": self.port, "security": "none"}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port until the block ends. Raises ModuleNotFoundError if aiosmtpd is not installed."""
        try:
            from aiosmtpd.smtp import SMTP
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "a mail server for tests needs aiosmtpd: pip install 'fastapi-asyncbg[testing]'", name=error.name
            ) from error
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(self, hostname="mail.test"), self.host, 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Record a message, or send the next prepared reply."""
        if self.replies:
            return self.replies.pop(0)
        self.messages.append(
            ReceivedMail(
                sender=envelope.mail_from, recipients=tuple(envelope.rcpt_tos), content=bytes(envelope.original_content)
            )
        )
        return "250 OK"


class ReceivedRequest(NamedTuple):
    """One request received by the web server; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body as JSON. Raises ValueError."""
        return json.loads(self.body)


@dataclass
class WebPeer:
    """A web server (aiohttp) with a response for each path, set by the test, which records requests.

    An answer is a JSON value, an aiohttp response, or a function or coroutine function of the request that returns
    one: ``bg_web.answers["/items"] = [1, 2, 3]``. A path without an answer is 404.
    """

    url: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    requests: list[ReceivedRequest] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port until the block ends."""
        app = web.Application(client_max_size=1024**3)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    def to(self, path: str) -> list[ReceivedRequest]:
        """Return the requests to one path, in order."""
        return [request for request in self.requests if request.path == path]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(
            ReceivedRequest(request.method, request.path, dict(request.query), headers, await request.read())
        )
        if request.path not in self.answers:
            return web.json_response({"detail": f"no answer is set for {request.path}"}, status=404)
        answer = self.answers[request.path]
        if callable(answer):
            answer = answer(request)
        if asyncio.iscoroutine(answer):
            answer = await answer
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)
