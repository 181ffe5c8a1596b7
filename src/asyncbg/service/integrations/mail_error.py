"""What can go wrong with a mail: whether another attempt may help, and which part is to blame."""

import re
from dataclasses import dataclass
from enum import StrEnum

from asyncbg.errors import AsyncBGError, FinalError

_ENHANCED_CODE = re.compile(r"([245]\.\d{1,3}\.\d{1,3})\b", re.ASCII)
_REPLY = re.compile(rb"[2-5]\d\d[ \t\r\n-]")
_EMPTY_FIRST_LINE = re.compile(rb"\d{3}-[ \t\r]*\n")


class MailError(AsyncBGError):
    """The server could not take the message now: no connection, no answer in time or a 4xx reply (``code``).

    ``retry_after_s`` is the delay before the next attempt, by ASYNCBG_SMTP__SCHEDULE_S.
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
        """Say what happened, without addresses."""
        super().__init__(message)
        self.code = code
        self.retry_after_s: float | None = None


class MailUncertainError(MailError):
    """The whole message was sent and the server's answer got lost: it may have been delivered (RFC 5321, 4.5.3.2.6)."""


class MailRefusedError(MailError, FinalError):
    """This message will never be taken: it is malformed, or the server refused it for good (5xx)."""


class Part(StrEnum):
    """What a server's refusal is about, with the setting that changes it."""

    CONNECTION = "refused the connection"
    EHLO = "refused our EHLO name (ASYNCBG_SMTP__EHLO)"
    STARTTLS = "refused STARTTLS (ASYNCBG_SMTP__SECURITY)"
    STARTTLS_FIRST = "wants STARTTLS first (ASYNCBG_SMTP__SECURITY)"
    LOGIN = "refused the login (ASYNCBG_SMTP__USERNAME, ASYNCBG_SMTP__PASSWORD)"
    LOGIN_FIRST = "wants a login first (ASYNCBG_SMTP__USERNAME, ASYNCBG_SMTP__PASSWORD)"
    SENDER = "refused the sender (ASYNCBG_SMTP__SENDER)"
    RECIPIENT = "refused the recipient"
    MESSAGE = "refused the message"


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply to a command. ``text`` may hold addresses: it is matched, never quoted."""

    code: int
    text: str = ""

    @classmethod
    def read(cls, code: int, text: str, received: bytes) -> "Reply | None":
        """The reply that aiosmtplib parsed; None if what was ``received`` is none (``2500 ok``, ``999``).

        Its text is without an empty first line, behind which the extensions of EHLO begin.
        """
        if not 200 <= code < 600 or not _REPLY.match(received):
            return None
        return cls(code, f"\n{text}" if _EMPTY_FIRST_LINE.match(received) else text)

    @property
    def kind(self) -> int:
        """The first digit, which alone decides (RFC 5321, 4.3.2)."""
        return self.code // 100

    def __str__(self) -> str:
        """The code, with the enhanced one of RFC 3463 where there is one."""
        enhanced = _ENHANCED_CODE.match(self.text)
        return f"{self.code} {enhanced[1]}" if enhanced else str(self.code)


_OTHER_PROTOCOLS = (
    (re.compile(rb"HTTP/|<(!|html)", re.IGNORECASE), "an HTTP server"),
    (re.compile(rb"SSH-"), "an SSH server"),
    (re.compile(rb"\+OK"), "a POP3 server"),
    (re.compile(rb"\* (OK|BYE|PREAUTH)"), "an IMAP server"),
    (re.compile(rb"[\x14-\x17]\x03"), "TLS from the first byte (ASYNCBG_SMTP__SECURITY=tls)"),
    (re.compile(rb"(?![2-5]\d\d)."), "another protocol, or garbage"),
)

# Servers may delay a refusal to a later command, usually to RCPT: the reply itself then says what it is about.
# Each row matches "CODE TEXT". Sources: RFC 3207 and 4954 (530, 534, 535, 538), RFC 3463 and 5248 (X.1.7, X.7.8 …),
# and the texts of Postfix, Exim, Sendmail and Exchange.
_BLAME = tuple(
    (re.compile(pattern, re.IGNORECASE | re.ASCII | re.DOTALL), part)
    for pattern, part in (
        (r"^421 ", Part.CONNECTION),
        (r"^5(30|38|23)\b.*\b(starttls|tls|encrypt\w*)\b|[45]\.7\.1[01]\b|\bmust issue a starttls",
         Part.STARTTLS_FIRST),
        (r"^(53[0458]|432) |\d [45]\.7\.[89]\b|\b(auth\w*|login) (is )?(required|first)\b|\bauthenticate first\b",
         Part.LOGIN_FIRST),
        (r"\b(helo|ehlo)\b", Part.EHLO),
        (r"\d \d\.1\.[78]\b|\bsender (address |domain )?(\w+ )?(rejected|refused|denied|blocked|verif\w+|unknown)\b",
         Part.SENDER),
        (r"\d \d\.1\.([1-6]|10)\b|\d \d\.2\.\d", Part.RECIPIENT),
        (r"\d \d\.3\.[0-9]|^552 ", Part.MESSAGE),
    )
)  # fmt: skip


def refusal(reply: Reply, part: Part) -> MailError:
    """The error for a 4yz or 5yz reply to the command that is about ``part``: final by the first digit.

    Any other code is no answer to the command; it may pass.
    """
    if reply.kind not in (4, 5):
        return MailError(f"the SMTP server gave a reply that does not fit the command: {reply}", code=reply.code)
    kind = MailRefusedError if reply.kind == 5 else MailError
    return kind(f"the SMTP server {_blamed(reply, part)}: {reply}", code=reply.code)


def failure(step: str, error: Exception) -> MailError:
    """The error for a step that got no reply: the connection was lost or silent, or the command could not be sent."""
    if isinstance(error, TimeoutError):
        hint = "; is it a mail server, and does it expect TLS at once (ASYNCBG_SMTP__SECURITY=tls)?"
        return MailError(
            f"the SMTP server was silent at {step} and did not answer in time (ASYNCBG_SMTP__TIMEOUT_S)"
            + hint * (step == "the greeting")
        )
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return MailRefusedError(f"{step} cannot be sent: it holds a character that SMTP does not allow")
    return MailError(f"the connection to the SMTP server was lost at {step}")


def no_smtp(received: bytes) -> MailError | None:
    """The error for a greeting that is no SMTP: it names what was ``received``. None if that may be SMTP."""
    kind = next((name for pattern, name in _OTHER_PROTOCOLS if pattern.match(received)), None)
    if kind is None:
        return None
    return MailError(
        f"what answers at ASYNCBG_SMTP__HOST and ASYNCBG_SMTP__PORT does not speak SMTP: it looks like {kind}"
    )


def no_tls() -> MailError:
    """The error for a TLS handshake that failed."""
    return MailError(
        "no verified TLS connection to the SMTP server could be made; check ASYNCBG_SMTP__SECURITY, "
        "ASYNCBG_SMTP__HOST against its certificate, and ASYNCBG_SMTP__CA_FILE"
    )


def uncertain(what: str) -> MailUncertainError:
    """The error for a message that was sent whole and not answered."""
    return MailUncertainError(
        f"it is uncertain whether the SMTP server took the message: all of it was sent, and {what}; "
        "the next attempt repeats it with the same Message-ID"
    )


def _blamed(reply: Reply, part: Part) -> Part:
    """What the reply is about. A refused EHLO or STARTTLS is that; a refused login too, unless it wants STARTTLS."""
    if part in (Part.STARTTLS, Part.EHLO):
        return part
    said = f"{reply.code} {reply.text}"
    found = next((blamed for pattern, blamed in _BLAME if pattern.search(said)), part)
    return part if part is Part.LOGIN and found is not Part.STARTTLS_FIRST else found
