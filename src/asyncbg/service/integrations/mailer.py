"""The mailer: sends one message per call to the configured SMTP server, over a verified connection."""

import random
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.utils import parseaddr

import anyio.to_thread

from asyncbg.auth.origin import is_loopback
from asyncbg.core.clock import Clock, SystemClock
from asyncbg.errors import SettingsError
from asyncbg.service.integrations.delivery_schedule import DeliverySchedule
from asyncbg.service.integrations.mail_address import MailAddress
from asyncbg.service.integrations.mail_error import (
    MailError,
    MailRefusedError,
    MailUncertainError,
    Part,
    Reply,
    refusal,
)
from asyncbg.service.integrations.mail_message import (
    MAX_RECIPIENTS,
    Attachment,
    Mail,
    as_header,
    has_control,
    on_the_wire,
)
from asyncbg.service.integrations.smtp import Conversation, after_dot_s, conversation
from asyncbg.settings import SmtpSettings

_WRITE_IN_LOOP_LENGTH = 16_384
_OTHER_STEPS = 10
_UNCERTAIN_S = 3_600.0

__all__ = ["MailError", "MailRefusedError", "MailUncertainError", "Mailer", "Sent"]


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that the server accepted.

    ``refused`` holds the reply code of each refused recipient, ``replies`` the code of every recipient, and ``later``
    the recipients that may be accepted later (4xx).
    """

    message_id: str
    refused: tuple[int, ...] = ()
    replies: tuple[int, ...] = field(default=(), compare=False)
    later: tuple[str, ...] = field(default=(), compare=False, repr=False)


class Mailer:
    """Sends one message per call, each over its own connection.

    With ``starttls`` and ``tls`` the connection is encrypted and the server's certificate verified before anything
    else is sent; otherwise the call fails.
    """

    def __init__(self, settings: SmtpSettings, *, clock: Clock | None = None) -> None:
        """Raise SettingsError for mail in clear text, an invalid sender or an unreadable CA file."""
        if settings.security == "none" and not is_loopback(settings.host):
            raise SettingsError(
                "ASYNCBG_SMTP__SECURITY=none would send mail in clear text to another machine; "
                "set it to starttls or tls, or ASYNCBG_SMTP__HOST to a relay on this machine (localhost)"
            )
        self._settings = settings
        self._clock = clock or SystemClock()
        self._sender = _sender(settings.sender)
        self._tls = None if settings.security == "none" else _tls_context(settings)
        self._schedule = DeliverySchedule(settings.schedule_s, jitter=-0.05)
        self._rng = random.Random()  # nosec B311  # noqa: S311 - jitter

    @property
    def retries(self) -> int:
        """Number of attempts after the first, from ASYNCBG_SMTP__SCHEDULE_S."""
        return self._schedule.retries

    @property
    def attempt_s(self) -> float:
        """Maximum duration of one attempt, in seconds: all steps, and the long wait after the final dot."""
        return (MAX_RECIPIENTS + _OTHER_STEPS) * self._settings.timeout_s + 2 * after_dot_s(self._settings.timeout_s)

    def check_domain(self, address: str) -> None:
        """Raise AddressError for an address that is malformed or has a special-use domain that is not allowed."""
        MailAddress.parse(address).check_domain(allow_special_use=self._settings.allow_special_use)

    async def send(
        self,
        *,
        to: str | Sequence[str],
        subject: str,
        body: str,
        message_id: str,
        html: str | None = None,
        reply_to: str | None = None,
        cc: Sequence[str] = (),
        bcc: Sequence[str] = (),
        attachments: Sequence[Attachment] = (),
        only: Sequence[str] = (),
        attempt: int = 1,
    ) -> Sent:
        """Send a message, and return when the server has accepted it for at least one recipient.

        The parameters are those of :class:`~asyncbg.service.integrations.mail_message.Mail`; ``attempt``
        (1 is the first) determines ``retry_after_s`` of an error.
        Raises MailError if another attempt may succeed, its subclass MailUncertainError if the message may have been
        accepted all the same, and MailRefusedError if no attempt can succeed.
        """
        mail = Mail(
            to=[to] if isinstance(to, str) else to, subject=subject, body=body, message_id=message_id, html=html,
            reply_to=reply_to, cc=cc, bcc=bcc, attachments=attachments, only=only,
            allow_special_use=self._settings.allow_special_use,
        )  # fmt: skip
        content = await self._written(mail)
        try:
            async with conversation(self._settings, self._tls) as talk:
                replies = await self._hand_over(talk, mail, content)
                await talk.quit()
        except MailError as error:
            error.retry_after_s = self.delay_s(attempt, is_uncertain=isinstance(error, MailUncertainError))
            raise
        refused = {address: reply.code for address, reply in replies.items() if reply.kind != 2}
        return Sent(
            message_id,
            tuple(refused.values()),
            tuple(reply.code for reply in replies.values()),
            tuple(address for address, code in refused.items() if code < 500),
        )

    def delay_s(self, attempt: int, *, is_uncertain: bool = False) -> float:
        """Return the seconds before the next attempt.

        A message that may have been accepted is repeated after an hour, or after the longest delay of a shorter
        schedule, at the earliest.
        """
        least_s = min(_UNCERTAIN_S, max(self._settings.schedule_s, default=0.0)) if is_uncertain else 0.0
        return max(least_s, self._schedule.delay_s(attempt, self._rng))

    async def _written(self, mail: Mail) -> bytes:
        """Return the message as DATA sends it. A large one is rendered in a thread, to not block the event loop."""

        def write() -> bytes:
            return on_the_wire(mail.render(self._sender, self._clock.now_ms() // 1000))

        if len(mail.body) + len(mail.html or "") <= _WRITE_IN_LOOP_LENGTH and not mail.attachments:
            return write()
        return await anyio.to_thread.run_sync(write)

    async def _hand_over(self, talk: Conversation, mail: Mail, content: bytes) -> dict[str, Reply]:
        """Send MAIL, RCPT for each recipient, and DATA if one was accepted. Return the reply to each recipient."""
        sender = self._sender.addr_spec
        await talk.mail(sender, size=len(content), utf8=mail.needs_utf8(sender))
        replies = {address: await talk.recipient(address) for address in mail.recipients}
        if not any(reply.kind == 2 for reply in replies.values()):
            raise refusal(min(replies.values(), key=lambda reply: reply.kind), Part.RECIPIENT)
        await talk.data(content)
        return replies


def _sender(text: str) -> Address:
    """Parse ASYNCBG_SMTP__SENDER into an address with its display name."""
    name, address = parseaddr(text)
    if has_control(text) or not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", address):
        raise SettingsError(
            "ASYNCBG_SMTP__SENDER is not an address like asyncbg@example.com or Name <asyncbg@example.com>; "
            "put double quotes around a name that holds a comma or another special character"
        )
    return as_header(address, name=name)


def _tls_context(settings: SmtpSettings) -> ssl.SSLContext:
    """Return a context that trusts ``ca_file``, or the system's authorities without one."""
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError:
        raise SettingsError("ASYNCBG_SMTP__CA_FILE cannot be read as PEM certificates") from None
