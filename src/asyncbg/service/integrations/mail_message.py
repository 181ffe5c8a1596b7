"""Mail messages: validation, and rendering as the bytes that DATA sends."""

import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import policy
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime

from asyncbg.service.integrations.mail_address import AddressError, MailAddress
from asyncbg.service.integrations.mail_error import MailRefusedError

MAX_SUBJECT_LENGTH = 255
MAX_BODY_BYTES = 1024 * 1024
MAX_RECIPIENTS = 50
_UNDISCLOSED = "undisclosed-recipients:;"
_CRLF = "\r\n"
_MESSAGE_ID = re.compile(r"<[!#-;=?A-Z^-~]+@[!#-;=?A-Z\[\]^-~]+>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\n)")
_LEADING_DOT = re.compile(rb"(?m)^\.")
_BODY_POLICY = policy.SMTP.clone(cte_type="7bit")  # bodies travel as ASCII, whatever the server supports
_HEADER_POLICY = _BODY_POLICY.clone(max_line_length=998)  # addresses and ids stay whole, on one line


@dataclass(frozen=True, slots=True)
class Attachment:
    """An attached file. Its media type is guessed from its name."""

    name: str = field(repr=False)
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Mail:
    """One message. Raises MailRefusedError on creation if it would break a header or a limit.

    Several addresses in ``to`` are not shown to each other, and those in ``bcc`` are shown to nobody; those in ``cc``
    are shown to all. With ``only``, the message is sent to these addresses alone. ``message_id`` has the form
    ``<left@right>``; keep it the same for every attempt, so that mail servers can recognise a repeat.
    """

    to: Sequence[str]
    subject: str
    body: str
    message_id: str
    html: str | None = None
    reply_to: str | None = None
    cc: Sequence[str] = ()
    bcc: Sequence[str] = ()
    attachments: Sequence[Attachment] = ()
    only: Sequence[str] = ()
    allow_special_use: bool = False

    def __post_init__(self) -> None:
        """Validate the message before anything is sent."""
        _check_text(self.subject, self.body, self.html, self.message_id)
        if not 0 < len({*self.to, *self.cc, *self.bcc}) <= MAX_RECIPIENTS:
            raise MailRefusedError(f"a message has 1 to {MAX_RECIPIENTS} recipients; send several")
        self._addresses((*self.to, *self.cc, *self.bcc, *self.only, *([self.reply_to] if self.reply_to else [])))

    @property
    def recipients(self) -> list[str]:
        """Each address once, in the form that SMTP sends."""
        return list(dict.fromkeys(self._addresses(self.only or (*self.to, *self.cc, *self.bcc))))

    def needs_utf8(self, sender: str) -> bool:
        """Whether the server must support SMTPUTF8 (RFC 6531), because an address has no ASCII form."""
        return not all(address.isascii() for address in (*self.recipients, sender))

    def render(self, sender: Address, sent_s: int) -> bytes:
        """Return the message with its headers, lines ended by CRLF."""
        message = EmailMessage(_BODY_POLICY)
        message["Date"] = format_datetime(datetime.fromtimestamp(sent_s, UTC))
        message["From"] = sender
        to = self._addresses(self.to)
        message["To"] = as_header(to[0]) if len(to) == 1 else _UNDISCLOSED
        if self.cc:
            message["Cc"] = [as_header(address) for address in self._addresses(self.cc)]
        if self.reply_to:
            message["Reply-To"] = as_header(self._addresses([self.reply_to])[0])
        message["Message-ID"] = self.message_id
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation replies, please
        self._add_content(message)
        utf8 = self.needs_utf8(sender.addr_spec)
        return _subject_line(self.subject) + message.as_bytes(policy=_HEADER_POLICY.clone(utf8=utf8))

    def _add_content(self, message: EmailMessage) -> None:
        """Add the text, its HTML alternative and the attachments."""
        message.set_content(self.body, charset="utf-8", cte=_encoding(self.body))
        if self.html is not None:
            message.add_alternative(self.html, subtype="html", charset="utf-8", cte=_encoding(self.html))
        for attachment in self.attachments:
            kind = mimetypes.guess_type(attachment.name)[0] or "application/octet-stream"
            maintype, _, subtype = kind.partition("/")
            message.add_attachment(
                attachment.content, maintype=maintype, subtype=subtype, filename=attachment.name, cte="base64"
            )

    def _addresses(self, given: Sequence[str]) -> list[str]:
        """Return addresses in the form that SMTP sends. Raises MailRefusedError."""
        try:
            parsed = [MailAddress.parse(address) for address in given]
            for address in parsed:
                address.check_domain(allow_special_use=self.allow_special_use)
        except AddressError as error:
            malformed = "the recipient's address is not valid; its form is name@example.com"
            raise MailRefusedError(str(error) if error.domain else malformed) from None
        return [address.wire for address in parsed]


def on_the_wire(message: bytes) -> bytes:
    """Return a message as DATA sends it (RFC 5321, 4.5.2): every line ended by CRLF, leading dots doubled."""
    message = _LINE_END.sub(b"\r\n", message)
    return _LEADING_DOT.sub(b"..", message if message.endswith(b"\r\n") else message + b"\r\n")


def as_header(text: str, *, name: str = "") -> Address:
    """Return an address for a header. ``Address(addr_spec=…)`` would refuse non-ASCII mailboxes."""
    mailbox, _, domain = text.rpartition("@")
    return Address(name, mailbox, domain)


def has_control(text: str) -> bool:
    """Whether ``text`` contains a line break or another control character, which could begin another header."""
    return _CONTROL.search(text) is not None


def _encoding(text: str) -> str | None:
    return "base64" if _UNPRINTABLE.search(text) else None


def _check_text(subject: str, body: str, html: str | None, message_id: str) -> None:
    if not 0 < len(subject) <= MAX_SUBJECT_LENGTH or not subject.strip():
        raise MailRefusedError(f"the subject must have 1 to {MAX_SUBJECT_LENGTH} characters")
    if has_control(subject):
        raise MailRefusedError("the subject holds a line break or another control character")
    if len(message_id) > MAX_SUBJECT_LENGTH or not _MESSAGE_ID.fullmatch(message_id):
        raise MailRefusedError("a Message-ID has the form <left@right>, in ASCII without blanks")
    for text in (body, html or ""):
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise MailRefusedError("the body holds half a character (a lone surrogate)") from None
        if size > MAX_BODY_BYTES:
            raise MailRefusedError(f"the body is larger than {MAX_BODY_BYTES} bytes")


def _subject_line(subject: str) -> bytes:
    """Return the Subject header.

    EmailMessage (CPython 3.11.7) is not used for it: it decodes an encoded word in its input, including line breaks,
    and loses blanks where it folds one.
    """
    if subject.isascii() and subject == subject.strip() and "=?" not in subject:
        return f"Subject: {subject}\r\n".encode()
    return f"Subject: {Header(subject, 'utf-8', header_name='Subject').encode(linesep=_CRLF)}{_CRLF}".encode()
