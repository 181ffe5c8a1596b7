"""Connections to an SMTP server: aiosmtplib's client, with a protocol that records what was received."""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from aiosmtplib import SMTP, SMTPResponse, SMTPServerDisconnected
from aiosmtplib.protocol import SMTPProtocol

from asyncbg.service.integrations.mail_error import MailError, no_tls
from asyncbg.settings import SmtpSettings

_BLANK_LINES_AT_END = re.compile(rb"(?<=\n)\s+\Z")
_RECORDED_BYTES = 256
_BLOCK_BYTES = 65_536


class RecordingProtocol(SMTPProtocol):
    """aiosmtplib's protocol, which also records the beginning of each reply (``received``).

    A subclass is needed for three things: aiosmtplib's errors do not contain what was received instead of a reply; its
    parser reads ``2500`` as 250 and fails on blank lines around a reply; its DATA has one timeout for the message and
    the answer.
    """

    received: bytes = b""
    is_sent: bool = False

    def data_received(self, data: bytes) -> None:
        """Record the data, and pass it on without blank lines before and after a reply."""
        data = _BLANK_LINES_AT_END.sub(b"", data if self.received else data.lstrip())
        self.received = (self.received + data)[:_RECORDED_BYTES]
        super().data_received(data)

    async def transfer(self, content: bytes, *, block_s: float, answer_s: float) -> SMTPResponse:
        """Send a message after DATA and return the answer. A server may refuse the message before its end.

        ``is_sent`` says whether the final dot was sent. Raises TimeoutError if a block is not accepted within
        ``block_s`` seconds, or no answer is received within ``answer_s``.
        """
        answer = asyncio.create_task(self.read_response(), name="asyncbg-smtp-answer")
        try:
            with suppress(ConnectionError):  # the answer says why, or fails for the same reason
                await self._send(content, block_s)
            with anyio.fail_after(answer_s):
                response = await answer
        finally:
            answer.cancel()
        if response.code < 400 and not self.is_sent:
            raise SMTPServerDisconnected("Connection lost")
        return response

    async def _send(self, content: bytes, block_s: float) -> None:
        for start in range(0, len(content), _BLOCK_BYTES):
            self.write(content[start : start + _BLOCK_BYTES])
            with anyio.fail_after(block_s):
                await self._drain_helper()  # the method that asyncio.StreamWriter.drain() calls
        self.write(b".\r\n")
        self.is_sent = True


@asynccontextmanager
async def connection(
    settings: SmtpSettings, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[SMTP, RecordingProtocol]]:
    """Connect, over TLS if ``security`` is ``tls``; the greeting is not read yet. Raises MailError.

    ``SMTP.connect()`` is not used: it accepts no greeting but 220, and no protocol class.
    """
    transport, protocol = await _connect(settings, tls if settings.security == "tls" else None)
    try:
        name = settings.ehlo or _address_literal(transport.get_extra_info("sockname")[0])
        client = SMTP(hostname=settings.host, local_hostname=name, timeout=settings.timeout_s, tls_context=tls)
        client.transport, client.protocol = transport, protocol
        yield client, protocol
    finally:
        transport.abort()  # also after a cancellation, in the middle of a command: a close would wait for the server


async def _connect(settings: SmtpSettings, tls: ssl.SSLContext | None) -> tuple[asyncio.Transport, RecordingProtocol]:
    where = "the SMTP server (ASYNCBG_SMTP__HOST, ASYNCBG_SMTP__PORT)"
    loop = asyncio.get_running_loop()
    try:
        with anyio.fail_after(settings.timeout_s):
            return await loop.create_connection(RecordingProtocol, settings.host, settings.port, ssl=tls)
    except TimeoutError:
        hint = "; does it expect TLS at once (ASYNCBG_SMTP__SECURITY=tls)?" if tls else ""
        raise MailError(f"cannot connect to {where} in time (ASYNCBG_SMTP__TIMEOUT_S){hint}") from None
    except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError):
        raise no_tls() from None
    except (OSError, ValueError):
        raise MailError(f"cannot connect to {where}") from None


def _address_literal(host: str) -> str:
    """Return our address as an address literal (RFC 5321, 4.1.3): [192.0.2.1], [IPv6:2001:db8::1]."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return f"[{address.ipv4_mapped}]" if address.ipv4_mapped else f"[IPv6:{address}]"
    return f"[{address}]"
