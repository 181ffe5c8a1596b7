"""Mail: one message, made by the rules and handed to the configured SMTP server over a verified connection."""

import ipaddress
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

import aiosmtplib
import anyio
import anyio.to_thread
from email_validator import EmailNotValidError, validate_email

from asyncbg.clock import Clock, SystemClock
from asyncbg.errors import AsyncBGError, FinalError, SettingsError
from asyncbg.settings import SmtpSettings

MAX_SUBJECT_LENGTH = 255
MAX_BODY_BYTES = 1024 * 1024
MAX_RECIPIENTS = 50
_QUIT_S = 1.0
_WRITE_IN_LOOP_LENGTH = 16_384
_UNDISCLOSED = "undisclosed-recipients:;"
_CRLF = "\r\n"
_MESSAGE_ID = re.compile(r"<[!#-;=?A-Z^-~]+@[!#-;=?A-Z\[\]^-~]+>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_ENHANCED_CODE = re.compile(r"([245]\.\d{1,3}\.\d{1,3})\b")
_BODY_POLICY = policy.SMTP.clone(cte_type="7bit")  # bodies travel as ASCII, whatever the server supports
_HEADER_POLICY = _BODY_POLICY.clone(max_line_length=998)  # addresses and ids stay whole, on one line


class MailError(AsyncBGError):
    """The server could not take the message now: no connection, no answer in time or a 4xx reply (``code``)."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        """Say what happened, without addresses."""
        super().__init__(message)
        self.code = code


class MailRefusedError(MailError, FinalError):
    """This message will never be taken: it is malformed, or the server refused it for good (5xx)."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message the server took responsibility for.

    ``refused`` holds the reply code of every recipient it refused; empty when all were taken.
    """

    message_id: str
    refused: tuple[int, ...] = ()


class Mailer:
    """Sends one message a call, each over its own connection.

    With ``starttls`` and ``tls`` the connection is encrypted and the server's certificate verified before anything
    else is said, or the call fails.
    """

    def __init__(self, settings: SmtpSettings, *, clock: Clock | None = None) -> None:
        """Take the section; raises SettingsError for mail in clear text, a bad sender or an unreadable CA file."""
        if settings.security == "none" and not _is_loopback(settings.host):
            raise SettingsError(
                "ASYNCBG_SMTP__SECURITY=none would send mail in clear text to another machine; "
                "set it to starttls or tls, or ASYNCBG_SMTP__HOST to a relay on this machine (localhost)"
            )
        self._settings = settings
        self._clock = clock or SystemClock()
        self._sender = _sender(settings.sender)
        self._tls = None if settings.security == "none" else _tls_context(settings)
        self._local_hostname: str | None = None

    async def send(self, *, to: str | Sequence[str], subject: str, body: str, message_id: str) -> Sent:
        """Send ``body`` as plain text and return when the server took it, for one of the recipients at least.

        Up to ``MAX_RECIPIENTS``; where there are several, none is shown another's address. ``message_id`` has the form
        ``<left@right>``; keep it the same for every attempt, so that a mail server can drop repeats: after a MailError
        the server may have the message all the same. Raises MailError where another try may help, MailRefusedError
        where not.
        """
        recipients = _recipients(to)
        _check(subject, body, message_id)
        message = await self._written(recipients, subject, body, message_id)
        client = self._client()
        try:
            refused = await self._hand_over(client, recipients, message)
            await _say_goodbye(client)
        finally:
            client.close()  # also after a cancellation: a client left in the middle of a command hangs the next one
        return Sent(message_id, refused)

    async def _written(self, to: list[str], subject: str, body: str, message_id: str) -> bytes:
        """The message; one with a large body is written in a thread, away from the event loop."""
        if len(body) <= _WRITE_IN_LOOP_LENGTH:
            return self._message(to, subject, body, message_id)
        return await anyio.to_thread.run_sync(self._message, to, subject, body, message_id)

    def _message(self, to: list[str], subject: str, body: str, message_id: str) -> bytes:
        """The message as it goes over the wire."""
        message = EmailMessage(_BODY_POLICY)
        message["Date"] = format_datetime(datetime.fromtimestamp(self._clock.now_ms() // 1000, UTC))
        message["From"] = self._sender
        message["To"] = _address(to[0]) if len(to) == 1 else _UNDISCLOSED
        message["Message-ID"] = message_id
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation replies, please
        message.set_content(body, charset="utf-8", cte="base64" if _UNPRINTABLE.search(body) else None)
        utf8 = self._needs_utf8(to)
        return _subject_line(subject) + message.as_bytes(policy=_HEADER_POLICY.clone(utf8=utf8))

    def _needs_utf8(self, to: list[str]) -> bool:
        """Whether the server must know SMTPUTF8 (RFC 6531): an address has no ASCII form."""
        return not all(address.isascii() for address in (*to, self._sender.addr_spec))

    def _client(self) -> aiosmtplib.SMTP:
        """A fresh client. The encryption is always said: left to choose, it goes on in clear text without STARTTLS."""
        return aiosmtplib.SMTP(
            hostname=self._settings.host,
            port=self._settings.port,
            timeout=self._settings.timeout_s,
            use_tls=self._settings.security == "tls",
            start_tls=self._settings.security == "starttls",
            tls_context=self._tls,
            local_hostname=self._local_hostname,
        )

    async def _hand_over(self, client: aiosmtplib.SMTP, to: list[str], message: bytes) -> tuple[int, ...]:
        """Connect, log in, send, all before the deadline; gives the codes of refused recipients."""
        sender, settings = self._sender.addr_spec, self._settings
        options = ["SMTPUTF8"] if self._needs_utf8(to) else []
        try:
            with anyio.fail_after(settings.timeout_s):
                await client.connect()
                self._local_hostname = client.local_hostname  # looked up once: it may take a resolver's time
                if settings.username and settings.password:
                    await client.login(settings.username, settings.password.get_secret_value())
                refused, _ = await client.sendmail(sender, to, message, mail_options=options)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise _explained(error) from None  # the cause may quote addresses
        return tuple(reply.code for reply in refused.values())


async def _say_goodbye(client: aiosmtplib.SMTP) -> None:
    """QUIT, for a second at most. The message is taken already: nothing that happens here may look like a failure."""
    with anyio.move_on_after(_QUIT_S, shield=True), suppress(aiosmtplib.SMTPException, OSError):
        await client.quit()


def _check(subject: str, body: str, message_id: str) -> None:
    """Refuse what would break a header or the limits."""
    if not 0 < len(subject) <= MAX_SUBJECT_LENGTH or not subject.strip():
        raise MailRefusedError(f"the subject must have 1 to {MAX_SUBJECT_LENGTH} characters")
    if _CONTROL.search(subject):
        raise MailRefusedError("the subject holds a line break or another control character")
    if len(message_id) > MAX_SUBJECT_LENGTH or not _MESSAGE_ID.fullmatch(message_id):
        raise MailRefusedError("a Message-ID has the form <left@right>, in ASCII without blanks")
    try:
        size = len(body.encode())
    except UnicodeEncodeError:
        raise MailRefusedError("the body holds half a character (a lone surrogate)") from None
    if size > MAX_BODY_BYTES:
        raise MailRefusedError(f"the body is larger than {MAX_BODY_BYTES} bytes")


def _recipients(to: str | Sequence[str]) -> list[str]:
    """Each address once, in the form it has on the wire."""
    given = [to] if isinstance(to, str) else to
    if not 0 < len(given) <= MAX_RECIPIENTS:
        raise MailRefusedError(f"a message has 1 to {MAX_RECIPIENTS} recipients; send several")
    return list(dict.fromkeys(_recipient(address) for address in given))


def _recipient(to: str) -> str:
    """The address in the form it has on the wire: ASCII if it has one, normalized Unicode for SMTPUTF8 otherwise."""
    try:
        checked = validate_email(to, check_deliverability=False, test_environment=True, strict=True)
    except EmailNotValidError:
        raise MailRefusedError("the recipient's address is not valid; its form is name@example.com") from None
    return checked.ascii_email or checked.normalized


def _subject_line(subject: str) -> bytes:
    """The Subject header.

    Written here because EmailMessage (CPython 3.11.7) decodes an encoded word in what it is given, line breaks and
    all, and loses blanks where it folds one.
    """
    if subject.isascii() and subject == subject.strip() and "=?" not in subject:
        return f"Subject: {subject}\r\n".encode()
    return f"Subject: {Header(subject, 'utf-8', header_name='Subject').encode(linesep=_CRLF)}{_CRLF}".encode()


def _sender(text: str) -> Address:
    """ASYNCBG_SMTP__SENDER as an address with its display name."""
    name, address = parseaddr(text)
    if _CONTROL.search(text) or not re.fullmatch(r"[^@\s]+@[^@\s]+", address):
        raise SettingsError(
            "ASYNCBG_SMTP__SENDER is not an address like asyncbg@example.com or Name <asyncbg@example.com>; "
            "put double quotes around a name that holds a comma or another special character"
        )
    return _address(address, name=name)


def _address(text: str, *, name: str = "") -> Address:
    """An address for a header. Its ``addr_spec=`` would refuse non-ASCII mailboxes."""
    mailbox, _, domain = text.rpartition("@")
    return Address(name, mailbox, domain)


def _tls_context(settings: SmtpSettings) -> ssl.SSLContext:
    """Trust in ``ca_file``, or in the system's authorities where there is none."""
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError:
        raise SettingsError("ASYNCBG_SMTP__CA_FILE cannot be read as PEM certificates") from None


def _is_loopback(host: str) -> bool:
    """Whether what is said to ``host`` stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _explained(error: Exception) -> MailError:
    """The client's error in our words, final or not."""
    match error:
        case aiosmtplib.SMTPRecipientsRefused():
            return _replied(error.recipients[0])
        case aiosmtplib.SMTPResponseException():
            return _replied(error)
        case ssl.SSLError() | aiosmtplib.SMTPException(__cause__=ssl.SSLError()):
            return MailError(
                "no verified TLS connection to the SMTP server could be made; check ASYNCBG_SMTP__SECURITY, "
                "ASYNCBG_SMTP__HOST against its certificate, and ASYNCBG_SMTP__CA_FILE"
            )
        case TimeoutError():
            return MailError("the SMTP server did not finish in time (ASYNCBG_SMTP__TIMEOUT_S)")
        case aiosmtplib.SMTPConnectError():
            return MailError("cannot connect to the SMTP server (ASYNCBG_SMTP__HOST, ASYNCBG_SMTP__PORT)")
        case OSError():
            return MailError("the connection to the SMTP server was lost")
        case aiosmtplib.SMTPNotSupported():
            return MailRefusedError("the address is not ASCII and the SMTP server does not support SMTPUTF8")
        case aiosmtplib.SMTPException():
            return MailRefusedError(
                "the SMTP server does not offer the STARTTLS or login that is configured; "
                "check ASYNCBG_SMTP__SECURITY, ASYNCBG_SMTP__PORT and ASYNCBG_SMTP__USERNAME"
            )
    return MailRefusedError("an address cannot be said in SMTP")


def _replied(error: aiosmtplib.SMTPResponseException) -> MailError:
    """A reply: 4xx may pass, anything else will not (RFC 5321 section 4.2.1).

    It is quoted by its codes only: the text may hold addresses.
    """
    match error:
        case aiosmtplib.SMTPRecipientRefused():
            what = "recipient"
        case aiosmtplib.SMTPSenderRefused():
            what = "sender (ASYNCBG_SMTP__SENDER)"
        case aiosmtplib.SMTPAuthenticationError():
            what = "login (ASYNCBG_SMTP__USERNAME, ASYNCBG_SMTP__PASSWORD)"
        case aiosmtplib.SMTPConnectResponseError() | aiosmtplib.SMTPHeloError():
            what = "connection"
        case _:
            what = "message"
    enhanced = _ENHANCED_CODE.match(error.message)
    code = f"{error.code} {enhanced[1]}" if enhanced else str(error.code)
    kind = MailError if 400 <= error.code < 500 else MailRefusedError
    return kind(f"the SMTP server refused the {what}: {code}", code=error.code)
