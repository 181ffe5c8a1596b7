"""Errors of mail delivery: whether another attempt may succeed, and which part a refusal is about."""

import re
from dataclasses import dataclass
from enum import StrEnum

from asyncbg.errors import AsyncBGError, FinalError

_ENHANCED_CODE = re.compile(r"([245]\.\d{1,3}\.\d{1,3})\b", re.ASCII)
_REPLY = re.compile(rb"[2-5]\d\d[ \t\r\n-]")
_EMPTY_FIRST_LINE = re.compile(rb"\d{3}-[ \t\r]*\n")


class MailError(AsyncBGError):
    """The server did not accept the message now: no connection, no answer in time, or a 4xx reply (``code``).

    ``retry_after_s`` is the delay before the next attempt, by ASYNCBG_SMTP__SCHEDULE_S.
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
        """``message`` says what happened, without addresses."""
        super().__init__(message)
        self.code = code
        self.retry_after_s: float | None = None


class MailUncertainError(MailError):
    """The whole message was sent, but no answer received: it may have been delivered (RFC 5321, 4.5.3.2.6)."""


class MailRefusedError(MailError, FinalError):
    """The message is malformed, or the server refused it permanently (5xx)."""


class Part(StrEnum):
    """The subject of a server's refusal, with the setting that changes it."""

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
    """A server's reply to a command. ``text`` may contain addresses: it is matched, never quoted."""

    code: int
    text: str = ""

    @classmethod
    def read(cls, code: int, text: str, received: bytes) -> "Reply | None":
        """Return the reply that aiosmtplib parsed, or None if ``received`` is not a reply (``2500 ok``, ``999``).

        aiosmtplib drops an empty first line. It is added again, because the extensions of EHLO begin after the first.
        """
        if not 200 <= code < 600 or not _REPLY.match(received):
            return None
        return cls(code, f"\n{text}" if _EMPTY_FIRST_LINE.match(received) else text)

    @property
    def kind(self) -> int:
        """The first digit, which alone determines success or failure (RFC 5321, 4.3.2)."""
        return self.code // 100

    def __str__(self) -> str:
        """The code, with the enhanced status code of RFC 3463 if there is one."""
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

# Servers may delay a refusal to a later command, usually RCPT. The text of the reply then names its subject.
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
    """Return the error for a 4yz (retried) or 5yz (final) reply to the command for ``part``.

    Any other code does not fit the command, and is retried.
    """
    if reply.kind not in (4, 5):
        return MailError(f"the SMTP server gave a reply that does not fit the command: {reply}", code=reply.code)
    kind = MailRefusedError if reply.kind == 5 else MailError
    return kind(f"the SMTP server {_blamed(reply, part)}: {reply}", code=reply.code)


def failure(step: str, error: Exception) -> MailError:
    """Return the error for a step without a reply: a timeout, a lost connection, or a command that cannot be sent."""
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
    """Return the error for a greeting in another protocol, named by what was ``received``; None if it may be SMTP."""
    kind = next((name for pattern, name in _OTHER_PROTOCOLS if pattern.match(received)), None)
    if kind is None:
        return None
    return MailError(
        f"what answers at ASYNCBG_SMTP__HOST and ASYNCBG_SMTP__PORT does not speak SMTP: it looks like {kind}"
    )


def no_tls() -> MailError:
    """Return the error for a failed TLS handshake."""
    return MailError(
        "no verified TLS connection to the SMTP server could be made; check ASYNCBG_SMTP__SECURITY, "
        "ASYNCBG_SMTP__HOST against its certificate, and ASYNCBG_SMTP__CA_FILE"
    )


def uncertain(what: str) -> MailUncertainError:
    """Return the error for a message that was sent completely and not answered."""
    return MailUncertainError(
        f"it is uncertain whether the SMTP server took the message: all of it was sent, and {what}; "
        "the next attempt repeats it with the same Message-ID"
    )


def _blamed(reply: Reply, part: Part) -> Part:
    """Return the subject of a refusal: ``part`` for EHLO and STARTTLS, and for a login unless TLS is required."""
    if part in (Part.STARTTLS, Part.EHLO):
        return part
    said = f"{reply.code} {reply.text}"
    found = next((blamed for pattern, blamed in _BLAME if pattern.search(said)), part)
    return part if part is Part.LOGIN and found is not Part.STARTTLS_FIRST else found
