"""One mail transaction. aiosmtplib speaks SMTP; its replies are judged here, and its failures named (RFC 5321)."""

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
from asyncbg.service.integrations.smtp_connection import KeepingProtocol, connection
from asyncbg.settings import SmtpSettings

_QUIT_S = 1.0
_AFTER_DOT_STEPS, _AFTER_DOT_S = 60, 600.0
_MECHANISMS = ("plain", "login", "cram-md5")


def after_dot_s(timeout_s: float) -> float:
    """Return the seconds to wait for the answer to the final dot: sixty steps, at most ten minutes (4.5.3.2.6)."""
    return max(timeout_s, min(timeout_s * _AFTER_DOT_STEPS, _AFTER_DOT_S))


@asynccontextmanager
async def conversation(settings: SmtpSettings, tls: ssl.SSLContext | None) -> AsyncIterator["Conversation"]:
    """Connect, encrypt and log in as ``settings`` say; the connection is closed with the block.

    Raises MailError where another attempt may help, MailRefusedError where not.
    """
    async with connection(settings, tls) as (client, protocol):
        talk = Conversation(client, protocol, settings)
        await talk.begin()
        yield talk


class Conversation:
    """The commands, one method each. Every reply is judged by its first digit (RFC 5321, 4.3.2)."""

    def __init__(self, client: SMTP, protocol: KeepingProtocol, settings: SmtpSettings) -> None:
        """Made by :func:`conversation`."""
        self._client = client
        self._protocol = protocol
        self._settings = settings

    async def begin(self) -> None:
        """Greet, encrypt, log in: nothing else is sent before the connection is what the settings ask for."""
        await self._greeting()
        await self._ehlo()
        if self._settings.security == "starttls":
            await self._start_tls()
            await self._ehlo()
        if self._settings.username and self._settings.password:
            await self._login(self._settings.username, self._settings.password.get_secret_value())

    async def mail(self, sender: str, *, size: int, utf8: bool) -> None:
        """MAIL: the sender, the size where the server asks for it (RFC 1870), and SMTPUTF8 where it is needed."""
        if utf8 and not self._client.supports_extension("SMTPUTF8"):
            raise MailRefusedError("the address is not ASCII and the SMTP server does not support SMTPUTF8")
        options = [f"SIZE={size}"] * self._client.supports_extension("SIZE") + ["SMTPUTF8"] * utf8
        reply = await self._reply("MAIL", self._client.mail(sender, options=options, encoding="utf-8"))
        if reply.kind != 2:
            raise refusal(reply, Part.SENDER)

    async def recipient(self, address: str) -> Reply:
        """RCPT: return the server's reply, whatever it is; 421 ends the conversation and raises MailError."""
        reply = await self._reply("RCPT", self._client.rcpt(address, encoding="utf-8"))
        if reply.kind not in (2, 4, 5) or reply.code == 421:
            raise refusal(reply, Part.RECIPIENT)
        return reply

    async def data(self, content: bytes) -> None:
        """DATA: the message, dots doubled. Once the final dot is sent, what fails is MailUncertainError."""
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
        """QUIT, for a second at most. The server has taken the message: an error here is not the message's."""
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
        """EHLO, or HELO for a server that does not know it (RFC 5321, 3.2)."""
        reply = await self._reply("EHLO", self._client.ehlo())
        if reply.kind == 2:
            self._client.last_ehlo_response = SMTPResponse(reply.code, reply.text)  # also of 2yz other than 250
            return
        if reply.kind == 5:
            reply = await self._reply("HELO", self._client.helo())
        if reply.kind != 2:
            raise refusal(reply, Part.CONNECTION if reply.code == 421 else Part.EHLO)
        self._client.last_helo_response = SMTPResponse(reply.code, reply.text)

    async def _start_tls(self) -> None:
        """STARTTLS, and the handshake after 220, the only code that aiosmtplib begins it for."""
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
        """AUTH (RFC 4954) with the first mechanism that the server takes."""
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
        """One mechanism. ``SMTP.auth_login()`` puts the user name behind AUTH LOGIN, which not every server takes."""
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
        """Return the reply to a step. For most codes aiosmtplib raises; here such a code is a reply like any other."""
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
