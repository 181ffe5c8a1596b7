"""One conversation with an SMTP server (RFC 5321): each step has its own time limit, each failure its own name."""

import base64
import hmac
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSStream

from asyncbg.service.integrations.mail_error import (
    MailError,
    MailRefusedError,
    MailUncertainError,
    Part,
    Reply,
    refusal,
)
from asyncbg.settings import SmtpSettings

_REPLY_LINE = re.compile(rb"(\d{3})(?:([ \t-])(.*)|)", re.DOTALL)
_MAX_REPLY_BYTES = 65_536
_MAX_REPLY_LINES = 1_000
_BLOCK_BYTES = 65_536
_QUIT_S = 1.0
_AFTER_DOT_STEPS, _AFTER_DOT_S = 60, 600.0
_LOST = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, anyio.IncompleteRead)
_OTHER_PROTOCOLS = (
    (re.compile(rb"HTTP/|<(!|html)", re.IGNORECASE), "an HTTP server"),
    (re.compile(rb"SSH-"), "an SSH server"),
    (re.compile(rb"\+OK"), "a POP3 server"),
    (re.compile(rb"\* (OK|BYE|PREAUTH)"), "an IMAP server"),
    (re.compile(rb"[\x14-\x17]\x03"), "TLS from the first byte (ASYNCBG_SMTP__SECURITY=tls)"),
)


class _UnreadableError(Exception):
    """What came is no SMTP reply; ``line`` is its beginning."""

    def __init__(self, line: bytes) -> None:
        super().__init__()
        self.line = line


def after_dot_s(timeout_s: float) -> float:
    """Seconds to wait for the answer to the final dot: sixty steps, at most the ten minutes of RFC 5321 4.5.3.2.6."""
    return max(timeout_s, min(timeout_s * _AFTER_DOT_STEPS, _AFTER_DOT_S))


@asynccontextmanager
async def conversation(settings: SmtpSettings, tls: ssl.SSLContext | None) -> AsyncIterator["Conversation"]:
    """Connect, encrypt and log in as ``settings`` say; the connection is closed with the block.

    Raises MailError where another attempt may help, MailRefusedError where not.
    """
    stream = await _connect(settings)
    talk = Conversation(stream, settings)
    try:
        await talk.begin(tls)
        yield talk
    finally:
        await anyio.aclose_forcefully(talk.stream)  # also after a cancellation, in the middle of a command


async def _connect(settings: SmtpSettings) -> ByteStream:
    where = "the SMTP server (ASYNCBG_SMTP__HOST, ASYNCBG_SMTP__PORT)"
    try:
        with anyio.fail_after(settings.timeout_s):
            return await anyio.connect_tcp(settings.host, settings.port)
    except TimeoutError:
        raise MailError(f"cannot connect to {where} in time (ASYNCBG_SMTP__TIMEOUT_S)") from None
    except (OSError, ValueError):
        raise MailError(f"cannot connect to {where}") from None


class Conversation:
    """The commands, one method each. Every reply is judged by its first digit; ``extensions`` are what EHLO offered."""

    def __init__(self, stream: ByteStream, settings: SmtpSettings) -> None:
        """Made by :func:`conversation`."""
        self.stream = stream
        self.extensions: dict[str, str] = {}
        self._received = BufferedByteReceiveStream(stream)
        self._settings = settings
        self._name = settings.ehlo or _address_literal(stream)

    async def begin(self, tls: ssl.SSLContext | None) -> None:
        """Greet, encrypt, log in: nothing else is said before the connection is what the settings ask for."""
        if self._settings.security == "tls":
            await self._encrypt(tls)
        await self._greeting()
        await self._ehlo()
        if self._settings.security == "starttls":
            await self._start_tls(tls)
            await self._ehlo()
        if self._settings.username and self._settings.password:
            await self._login(self._settings.username, self._settings.password.get_secret_value())

    async def mail(self, sender: str, *, size: int, utf8: bool) -> None:
        """MAIL: name the sender, the size where the server asks for it (RFC 1870), and SMTPUTF8 where it is needed."""
        if utf8 and "SMTPUTF8" not in self.extensions:
            raise MailRefusedError("the address is not ASCII and the SMTP server does not support SMTPUTF8")
        options = [f"SIZE={size}"] * ("SIZE" in self.extensions) + ["SMTPUTF8"] * utf8
        reply = await self._say(" ".join((f"MAIL FROM:<{sender}>", *options)), "MAIL")
        if reply.kind != 2:
            raise refusal(reply, Part.SENDER)

    async def recipient(self, address: str) -> Reply:
        """RCPT: the server's reply, whatever it is; 421 ends the conversation and raises MailError."""
        reply = await self._say(f"RCPT TO:<{address}>", "RCPT")
        if reply.kind not in (2, 4, 5) or reply.code == 421:
            raise refusal(reply, Part.RECIPIENT)
        return reply

    async def data(self, content: bytes) -> None:
        """DATA: the message, dots doubled. Once the final dot may be out, what fails is MailUncertainError."""
        reply = await self._say("DATA", "DATA")
        if reply.kind != 3:
            raise refusal(reply, Part.MESSAGE)
        with _named("the message", self._settings.timeout_s, bounded=False):
            for start in range(0, len(content), _BLOCK_BYTES):
                with anyio.fail_after(self._settings.timeout_s):
                    await self.stream.send(content[start : start + _BLOCK_BYTES])
        reply = await self._final_dot()
        if reply.kind != 2:
            raise refusal(reply, Part.MESSAGE)

    async def quit(self) -> None:
        """QUIT, for a second at most. The message is taken already: nothing here may look like a failure."""
        with anyio.move_on_after(_QUIT_S, shield=True), suppress(*_LOST, _UnreadableError):
            await self.stream.send(b"QUIT\r\n")
            await self._reply()

    async def _final_dot(self) -> Reply:
        """The end of the message and the answer to it, the one a server may take minutes for."""
        wait_s = after_dot_s(self._settings.timeout_s)
        try:
            with anyio.fail_after(wait_s):
                await self.stream.send(b".\r\n")
                reply = await self._reply()
        except TimeoutError:
            what = f"no answer came within {wait_s:g} s"
        except _LOST:
            what = "the connection was lost before the answer"
        except _UnreadableError:
            what = "what came is no SMTP reply"
        else:
            if reply.kind in (2, 4, 5):
                return reply
            what = f"the answer was {reply}"
        raise MailUncertainError(
            f"it is uncertain whether the SMTP server took the message: all of it was sent, and {what}; "
            "the next attempt repeats it with the same Message-ID"
        )

    async def _greeting(self) -> None:
        try:
            with _named("the greeting", self._settings.timeout_s):
                reply = await self._reply()
        except (_UnreadableError, MailError) as error:
            line = error.line if isinstance(error, _UnreadableError) else self._received.buffer
            kind = next((name for pattern, name in _OTHER_PROTOCOLS if pattern.match(line)), None)
            if kind is None and isinstance(error, MailError):
                raise
            raise MailError(
                "what answers at ASYNCBG_SMTP__HOST and ASYNCBG_SMTP__PORT does not speak SMTP: it looks like "
                f"{kind or 'another protocol, or garbage'}"
            ) from None
        if reply.kind != 2:
            raise refusal(reply, Part.CONNECTION)

    async def _ehlo(self) -> None:
        """EHLO, or HELO for a server that does not know it (RFC 5321, 3.2)."""
        self.extensions = {}
        reply = await self._say(f"EHLO {self._name}", "EHLO")
        if reply.kind == 2:
            lines = reply.text.upper().replace("AUTH=", "AUTH ").split("\n")[1:]  # the form before RFC 2554
            offered = (line.partition(" ") for line in lines)
            self.extensions = {word: rest for word, _, rest in offered}
            return
        if reply.kind == 5:
            reply = await self._say(f"HELO {self._name}", "HELO")
        if reply.kind != 2:
            raise refusal(reply, Part.CONNECTION if reply.code == 421 else Part.EHLO)

    async def _start_tls(self, tls: ssl.SSLContext | None) -> None:
        if "STARTTLS" not in self.extensions:
            raise MailRefusedError(
                "the SMTP server does not offer STARTTLS, which is configured; "
                "check ASYNCBG_SMTP__SECURITY and ASYNCBG_SMTP__PORT"
            )
        reply = await self._say("STARTTLS", "STARTTLS")
        if reply.kind != 2:
            raise refusal(reply, Part.STARTTLS)
        await self._encrypt(tls)

    async def _encrypt(self, tls: ssl.SSLContext | None) -> None:
        """Go on over TLS. What was received in clear text before it is dropped (RFC 3207, 4.2; CVE-2011-0411)."""
        try:
            with anyio.fail_after(self._settings.timeout_s):
                self.stream = await TLSStream.wrap(self.stream, hostname=self._settings.host, ssl_context=tls)
        except (ssl.SSLError, *_LOST):
            raise MailError(
                "no verified TLS connection to the SMTP server could be made; check ASYNCBG_SMTP__SECURITY, "
                "ASYNCBG_SMTP__HOST against its certificate, and ASYNCBG_SMTP__CA_FILE"
            ) from None
        self._received = BufferedByteReceiveStream(self.stream)

    async def _login(self, user: str, password: str) -> None:
        """AUTH (RFC 4954) with the first mechanism that the server takes."""
        offered = self.extensions.get("AUTH", "").split()
        mechanisms = [name for name in ("PLAIN", "LOGIN", "CRAM-MD5") if name in offered]
        if not mechanisms:
            raise MailRefusedError(
                "the SMTP server does not offer a login that we know (PLAIN, LOGIN, CRAM-MD5); "
                "check ASYNCBG_SMTP__USERNAME, ASYNCBG_SMTP__SECURITY and ASYNCBG_SMTP__PORT"
            )
        for mechanism in mechanisms:
            reply = await self._auth(mechanism, user, password)
            if reply.kind == 2:
                return
            if reply.code not in (504, 534):  # another mechanism may be taken
                break
        raise refusal(reply, Part.LOGIN)

    async def _auth(self, mechanism: str, user: str, password: str) -> Reply:
        if mechanism == "PLAIN":
            return await self._say(f"AUTH PLAIN {_base64(f'{chr(0)}{user}{chr(0)}{password}')}", "AUTH")
        reply = await self._say(f"AUTH {mechanism}", "AUTH")
        if reply.code != 334:
            return reply
        if mechanism == "CRAM-MD5":
            return await self._say(_cram(reply.text, user, password), "AUTH")
        reply = await self._say(_base64(user), "AUTH")
        return await self._say(_base64(password), "AUTH") if reply.code == 334 else reply

    async def _say(self, line: str, step: str) -> Reply:
        """Send a command and read the reply to it, both within the time of a step."""
        if re.search(r"[\x00-\x1f\x7f]", line):
            raise MailRefusedError("an address cannot be said in SMTP: it holds a control character")
        try:
            with _named(step, self._settings.timeout_s):
                await self.stream.send(f"{line}\r\n".encode())
                return await self._reply()
        except _UnreadableError:
            raise MailError(f"the SMTP server's answer to {step} is no SMTP reply") from None

    async def _reply(self) -> Reply:
        """The next reply, of one line or of many; blank lines before it are skipped. Its last line's code counts."""
        texts: list[str] = []
        size = 0
        for _ in range(_MAX_REPLY_LINES):
            line = await self._line(_MAX_REPLY_BYTES - size)
            size += len(line) + 2
            if not line.strip() and not texts:
                continue
            match = _REPLY_LINE.fullmatch(line)
            if match is None or not 200 <= int(match[1]) < 600:
                raise _UnreadableError(line)
            texts.append((match[3] or b"").decode("latin-1").strip())
            if match[2] != b"-":
                return Reply(int(match[1]), "\n".join(texts))
        raise _UnreadableError(b"")

    async def _line(self, limit: int) -> bytes:
        try:
            return (await self._received.receive_until(b"\n", max(limit, 1))).rstrip(b"\r")
        except anyio.DelimiterNotFound:
            raise _UnreadableError(b"") from None
        except anyio.IncompleteRead:
            if self._received.buffer.strip():
                raise _UnreadableError(self._received.buffer) from None
            raise


@contextmanager
def _named(step: str, timeout_s: float, *, bounded: bool = True) -> Iterator[None]:
    """Errors of the connection in our words, naming the step they happened at."""
    try:
        with anyio.fail_after(timeout_s if bounded else None):
            yield
    except TimeoutError:
        hint = "; is it a mail server, and does it expect TLS at once (ASYNCBG_SMTP__SECURITY=tls)?"
        asked = hint if step == "the greeting" else ""
        raise MailError(
            f"the SMTP server was silent at {step} and did not answer in time (ASYNCBG_SMTP__TIMEOUT_S){asked}"
        ) from None
    except _LOST:
        raise MailError(f"the connection to the SMTP server was lost at {step}") from None


def _address_literal(stream: ByteStream) -> str:
    """Our end of the connection as RFC 5321 4.1.3 writes it: [192.0.2.1], [IPv6:2001:db8::1]."""
    host = str(stream.extra(SocketAttribute.local_address)[0]).partition("%")[0]  # noqa: S610 - anyio's, not Django's
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return f"[{address.ipv4_mapped}]" if address.ipv4_mapped else f"[IPv6:{address}]"
    return f"[{address}]"


def _cram(challenge: str, user: str, password: str) -> str:
    """The answer to a CRAM-MD5 challenge (RFC 2195)."""
    try:
        digest = hmac.new(password.encode(), base64.b64decode(challenge), "md5").hexdigest()
    except ValueError:
        raise MailError("the SMTP server's answer to AUTH is no SMTP reply") from None
    return _base64(f"{user} {digest}")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
