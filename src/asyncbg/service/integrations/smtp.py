"""SMTP transactions through aiosmtplib: every reply judged by its first digit, every failure named (RFC 5321)."""

import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

import anyio
from aiosmtplib import SMTP, SMTPException, SMTPResponse, SMTPResponseException
from aiosmtplib.auth import auth_login_encode

from asyncbg.service.integrations.mail_error import (
    MailError,
    MailRefusedError,
    Part,
    Reply,
    failure,
    no_smtp,
    no_tls,
    refusal,
    uncertain,
)
from asyncbg.service.integrations.smtp_connection import RecordingProtocol, connection
from asyncbg.settings import SmtpSettings

_QUIT_S = 1.0
_AFTER_DOT_STEPS, _AFTER_DOT_S = 60, 600.0
_MECHANISMS = ("plain", "login", "cram-md5")


def after_dot_s(timeout_s: float) -> float:
    """Return the seconds to wait for the answer to the final dot: sixty steps, at most ten minutes (4.5.3.2.6)."""
    return max(timeout_s, min(timeout_s * _AFTER_DOT_STEPS, _AFTER_DOT_S))


@asynccontextmanager
async def conversation(settings: SmtpSettings, tls: ssl.SSLContext | None) -> AsyncIterator["Conversation"]:
    """Connect, encrypt and log in according to ``settings``; the connection is closed at the end of the block.

    Raises MailError if another attempt may succeed, MailRefusedError if not.
    """
    async with connection(settings, tls) as (client, protocol):
        talk = Conversation(client, protocol, settings)
        await talk.begin()
        yield talk


class Conversation:
    """The commands, one method each. The first digit of a reply alone decides (RFC 5321, 4.3.2)."""

    def __init__(self, client: SMTP, protocol: RecordingProtocol, settings: SmtpSettings) -> None:
        """Use :func:`conversation` to create one."""
        self._client = client
        self._protocol = protocol
        self._settings = settings

    async def begin(self) -> None:
        """Read the greeting, encrypt and log in, before anything else is sent."""
        await self._greeting()
        await self._ehlo()
        if self._settings.security == "starttls":
            await self._start_tls()
            await self._ehlo()
        if self._settings.username and self._settings.password:
            await self._login(self._settings.username, self._settings.password.get_secret_value())

    async def mail(self, sender: str, *, size: int, utf8: bool) -> None:
        """Send MAIL with the sender, SIZE if the server supports it (RFC 1870), and SMTPUTF8 if needed."""
        if utf8 and not self._client.supports_extension("SMTPUTF8"):
            raise MailRefusedError("the address is not ASCII and the SMTP server does not support SMTPUTF8")
        options = [f"SIZE={size}"] * self._client.supports_extension("SIZE") + ["SMTPUTF8"] * utf8
        reply = await self._reply("MAIL", self._client.mail(sender, options=options, encoding="utf-8"))
        if reply.kind != 2:
            raise refusal(reply, Part.SENDER)

    async def recipient(self, address: str) -> Reply:
        """Send RCPT and return the reply, also a refusal. Raises MailError for 421, which ends the conversation."""
        reply = await self._reply("RCPT", self._client.rcpt(address, encoding="utf-8"))
        if reply.kind not in (2, 4, 5) or reply.code == 421:
            raise refusal(reply, Part.RECIPIENT)
        return reply

    async def data(self, content: bytes) -> None:
        """Send DATA and the message, its dots doubled. Raises MailUncertainError if the answer to it is lost."""
        reply = await self._reply("DATA", self._client.execute_command(b"DATA"))
        if reply.kind != 3:
            raise refusal(reply, Part.MESSAGE)
        step_s = self._settings.timeout_s
        try:
            reply = await self._reply(
                "the message", self._protocol.transfer(content, block_s=step_s, answer_s=after_dot_s(step_s))
            )
        except MailError as error:
            raise (uncertain(str(error)) if self._protocol.is_sent else error) from None
        if reply.kind == 3:
            raise uncertain(f"the answer was {reply}")
        if reply.kind != 2:
            raise refusal(reply, Part.MESSAGE)

    async def quit(self) -> None:
        """Send QUIT, for at most a second. Errors are ignored: the message is already accepted."""
        with anyio.move_on_after(_QUIT_S, shield=True), suppress(SMTPException, OSError):
            await self._client.quit()

    async def _greeting(self) -> None:
        try:
            reply = await self._reply("the greeting", self._protocol.read_response(self._settings.timeout_s))
        except MailError as error:
            raise no_smtp(self._protocol.received) or error from None
        if reply.kind != 2:
            raise refusal(reply, Part.CONNECTION)

    async def _ehlo(self) -> None:
        """Send EHLO, or HELO to a server that does not support EHLO (RFC 5321, 3.2)."""
        reply = await self._reply("EHLO", self._client.ehlo())
        if reply.kind == 2:
            self._client.last_ehlo_response = SMTPResponse(reply.code, reply.text)  # aiosmtplib sets it for 250 only
            return
        if reply.kind == 5:
            reply = await self._reply("HELO", self._client.helo())
        if reply.kind != 2:
            raise refusal(reply, Part.CONNECTION if reply.code == 421 else Part.EHLO)
        self._client.last_helo_response = SMTPResponse(reply.code, reply.text)

    async def _start_tls(self) -> None:
        """Send STARTTLS and do the handshake. aiosmtplib begins it after 220 only."""
        if not self._client.supports_extension("STARTTLS"):
            raise MailRefusedError(
                "the SMTP server does not offer STARTTLS, which is configured; "
                "check ASYNCBG_SMTP__SECURITY and ASYNCBG_SMTP__PORT"
            )
        try:
            reply = await self._reply("STARTTLS", self._client.starttls())
        except MailError as error:
            raise (no_tls() if self._protocol.received.startswith(b"220") else error) from None
        if reply.code != 220:
            raise refusal(reply, Part.STARTTLS)

    async def _login(self, user: str, password: str) -> None:
        """Send AUTH (RFC 4954) with the first mechanism that the server accepts."""
        offered = [name for name in _MECHANISMS if name in self._client.server_auth_methods]
        if not offered:
            raise MailRefusedError(
                "the SMTP server does not offer a login that we know (PLAIN, LOGIN, CRAM-MD5); "
                "check ASYNCBG_SMTP__USERNAME, ASYNCBG_SMTP__SECURITY and ASYNCBG_SMTP__PORT"
            )
        for mechanism in offered:
            reply = await self._auth(mechanism, user, password)
            if reply.kind == 2:
                return
            if reply.code not in (504, 534):  # with these codes another mechanism may work
                break
        raise refusal(reply, Part.LOGIN)

    async def _auth(self, mechanism: str, user: str, password: str) -> Reply:
        """Try one mechanism. Not ``SMTP.auth_login()``: not every server accepts the user name in its first line."""
        if mechanism == "plain":
            return await self._reply("AUTH", self._client.auth_plain(user, password))
        if mechanism == "cram-md5":
            return await self._reply("AUTH", self._client.auth_crammd5(user, password))
        for line in ((b"AUTH", b"LOGIN"), *((word,) for word in auth_login_encode(user, password))):
            reply = await self._reply("AUTH", self._client.execute_command(*line))
            if reply.code != 334:
                break
        return reply

    async def _reply(self, step: str, response: Awaitable[SMTPResponse]) -> Reply:
        """Return the reply to a step. aiosmtplib raises an error for most codes; here they are replies like others."""
        try:
            code, text = await response
        except SMTPResponseException as error:
            code, text = error.code, error.message
        except (SMTPException, OSError, ValueError) as error:
            raise failure(step, error) from None
        reply = Reply.read(code, text, self._protocol.received)
        if reply is None:
            raise MailError(f"the SMTP server's answer to {step} is no SMTP reply")
        self._protocol.received = b""
        return reply
