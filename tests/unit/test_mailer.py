"""Mail against real SMTP servers on loopback: what arrives, what is refused, what may be tried again."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from asyncbg.core.clock import ManualClock
from asyncbg.errors import FinalError, SettingsError
from asyncbg.service.integrations.mail_message import Mail
from asyncbg.service.integrations.mailer import Mailer, MailError, MailRefusedError, Sent
from asyncbg.settings import SmtpSettings

ID = "<0190a5c2-7d3e-7abc-8def-0123456789ab@asyncbg.example.com>"
MAIL: dict[str, Any] = {
    "to": "ada.canary7f3a@canary7f3a.example",
    "subject": "Hello",
    "body": "How are you?",
    "message_id": ID,
}


class Inbox:
    """An SMTP handler that keeps what it takes and answers as told."""

    def __init__(self, *, rcpt: str = "250 OK", data: str = "250 OK") -> None:
        self.rcpt, self.data = rcpt, data
        self.envelopes: list[Envelope] = []
        self.sessions: list[Session] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take the recipient if told so."""
        if self.rcpt.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.rcpt

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep the message."""
        self.envelopes.append(envelope)
        self.sessions.append(session)
        return self.data

    def message(self) -> EmailMessage:
        """The only message, parsed by the rules."""
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        parsed = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


Listen = Callable[..., Awaitable[int]]


@pytest_asyncio.fixture
async def listen() -> AsyncIterator[Listen]:
    """Start an SMTP server, ``listen(inbox, ssl=…, **options of aiosmtpd)``; gives its port."""
    servers: list[asyncio.Server] = []

    async def start(inbox: Inbox, *, ssl: ssl.SSLContext | None = None, **options: Any) -> int:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(inbox, hostname="mx.example.com", loop=loop, **options), "127.0.0.1", 0, ssl=ssl
        )
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest_asyncio.fixture
async def talk() -> AsyncIterator[Callable[[bytes], Awaitable[int]]]:
    """Start a server that says some bytes to everybody and nothing more; gives its port."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(said: bytes) -> int:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            writer.write(said)
            await reader.read()

        servers.append(await asyncio.start_server(handle, "127.0.0.1", 0))
        port: int = servers[-1].sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()
    for writer in writers:
        writer.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of our own."""
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """Its certificate as a PEM file."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


def server_tls(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for ``name``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def settings(port: int, **fields: Any) -> SmtpSettings:
    """A section for a server on loopback, without encryption unless told."""
    return SmtpSettings(**({"host": "localhost", "port": port, "security": "none", "timeout_s": 30} | fields))


async def test_a_message_arrives_as_it_was_given(listen: Listen) -> None:
    """Addresses, subject, body, Message-ID and the clock's date are in the message; the envelope agrees."""
    inbox = Inbox()
    mailer = Mailer(settings(await listen(inbox), sender="Our App <app@example.com>"), clock=ManualClock())

    sent = await mailer.send(**MAIL)

    message = inbox.message()
    assert sent == Sent(ID, ())
    assert (inbox.envelopes[0].mail_from, inbox.envelopes[0].rcpt_tos) == (
        "app@example.com",
        ["ada.canary7f3a@canary7f3a.example"],
    )
    assert (message["From"], message["To"]) == ("Our App <app@example.com>", "ada.canary7f3a@canary7f3a.example")
    assert (message["Subject"], message["Message-ID"]) == ("Hello", ID)
    assert message["Date"].datetime.timestamp() == 1_800_000_000
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content() == "How are you?\r\n"
    assert (message.get_content_type(), message.get_content_charset()) == ("text/plain", "utf-8")


async def test_the_default_sender_works(listen: Listen) -> None:
    """With nothing set but the server, mail comes from asyncbg@localhost."""
    inbox = Inbox()

    await Mailer(settings(await listen(inbox))).send(**MAIL)

    assert inbox.envelopes[0].mail_from == "asyncbg@localhost"


async def test_one_mailer_sends_many_at_once(listen: Listen) -> None:
    """Concurrent sends each have a connection and do not wait for one another."""
    inbox = Inbox()
    mailer = Mailer(settings(await listen(inbox)))

    await asyncio.gather(*(mailer.send(**MAIL | {"message_id": f"<{n}@a.example>"}) for n in range(10)))

    assert len(inbox.envelopes) == 10


@pytest.mark.parametrize(
    "subject",
    [
        "Gr\u00fc\u00dfe \u2603 \U0001f600",
        "\u00e4  b " * 50,
        "x" * 255,
        "a  b " * 40 + "c",
        "=?utf-8?q?a=0D=0ABcc:_eve.canary7f3a@canary7f3a.example?=",
        " leading and trailing ",
        "\u00e4" * 255,
        "\U0001f600" * 255,
        'Re: a: b, <c@d> (e) "f"',
    ],
)  # fmt: skip
async def test_any_subject_survives_the_wire(listen: Listen, subject: str) -> None:
    """Long, non-ASCII, padded or already encoded, a subject is decoded to what was given, and adds no header."""
    inbox = Inbox()

    await Mailer(settings(await listen(inbox))).send(**MAIL | {"subject": subject})

    message = inbox.message()
    assert message["Subject"] == subject
    assert sorted(name.lower() for name in message if not name.startswith("X-")) == [
        "auto-submitted", "content-transfer-encoding", "content-type", "date", "from", "message-id", "mime-version",
        "subject", "to",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    ["", "a\nb", ".\n..\n.", "From x\n", "\u00e4\u2603" * 5_000, "x" * 5_000, "\x00\x0b\x1b[2J", "a\u2028b\x85c"],
)
async def test_any_body_survives_the_wire(listen: Listen, body: str) -> None:
    """Dots, long lines, non-ASCII and control characters arrive; lines end as lines end in mail."""
    inbox = Inbox()

    await Mailer(settings(await listen(inbox))).send(**MAIL | {"body": body})

    assert inbox.message().get_content().replace("\r\n", "\n").removesuffix("\n") == body.removesuffix("\n")
    content = inbox.envelopes[0].content
    assert isinstance(content, bytes)
    assert content.isascii()


@pytest.mark.parametrize(
    "change",
    [
        {"subject": ""},
        {"subject": "   "},
        {"subject": "x" * 256},
        {"subject": "a\nBcc: eve.canary7f3a@canary7f3a.example"},
        {"subject": "a\r\nBcc: eve.canary7f3a@canary7f3a.example"},
        {"subject": "a\rb"},
        {"subject": "a\x00b"},
        {"subject": "a\x7fb"},
        {"subject": "a\u2028b"},
        {"subject": "a\ud800b"},
        {"to": ""},
        {"to": "ada"},
        {"to": "ada@"},
        {"to": "@example.com"},
        {"to": "ada.canary7f3a@canary7f3a.example, eve.canary7f3a@canary7f3a.example"},
        {"to": "ada.canary7f3a@canary7f3a.example\nBcc: eve.canary7f3a@canary7f3a.example"},
        {"to": "ada.canary7f3a@canary7f3a.example\r\nRCPT TO:<eve.canary7f3a@canary7f3a.example>"},
        {"to": "Ada <ada.canary7f3a@canary7f3a.example>"},
        {"to": "ada.canary7f3a@canary7f3a.example\x00"},
        {"to": "ada @example.com"},
        {"to": "<ada.canary7f3a@canary7f3a.example>"},
        {"to": "ada.canary7f3a@exam_ple.com"},
        {"to": "a" * 65 + "@example.com"},
        {"body": "x" * (1024 * 1024 + 1)},
        {"body": "\u00e4" * (512 * 1024 + 1)},
        {"body": "\ud800"},
        {"message_id": "no-brackets@example.com"},
        {"message_id": "<no-at>"},
        {"message_id": "<a@b>\r\nBcc: eve.canary7f3a@canary7f3a.example"},
        {"message_id": "<a b@c>"},
    ],
)
async def test_a_malformed_message_is_refused_before_it_is_sent(listen: Listen, change: dict[str, Any]) -> None:
    """Injection, bad addresses and sizes out of bounds fail for good, the input is not quoted, and nothing arrives."""
    inbox = Inbox()
    mailer = Mailer(settings(await listen(inbox)))

    with pytest.raises(MailRefusedError) as caught:
        await mailer.send(**MAIL | change)

    assert isinstance(caught.value, FinalError)
    assert inbox.envelopes == []
    assert "ada" not in str(caught.value)
    assert "eve" not in str(caught.value)


async def test_a_body_of_a_mebibyte_is_taken(listen: Listen) -> None:
    """The limit itself is allowed."""
    inbox = Inbox()

    await Mailer(settings(await listen(inbox))).send(**MAIL | {"body": "x\n" * (512 * 1024)})

    assert len(inbox.message().get_content().replace("\r\n", "\n")) == 1024 * 1024


async def test_an_international_domain_travels_in_ascii(listen: Listen) -> None:
    """A domain that has an ASCII form needs no SMTPUTF8."""
    inbox = Inbox()

    await Mailer(settings(await listen(inbox))).send(**MAIL | {"to": "ada.canary7f3a@b\u00fccher.example.com"})

    assert inbox.envelopes[0].rcpt_tos == ["ada.canary7f3a@xn--bcher-kva.example.com"]


async def test_an_international_mailbox_uses_smtputf8(listen: Listen) -> None:
    """A non-ASCII local part is sent as it is to a server that supports SMTPUTF8."""
    inbox = Inbox()
    mailer = Mailer(settings(await listen(inbox, enable_SMTPUTF8=True)))

    await mailer.send(**MAIL | {"to": "\u00fcser.canary7f3a@canary7f3a.example", "subject": "\u00e4"})

    assert inbox.envelopes[0].rcpt_tos == ["\u00fcser.canary7f3a@canary7f3a.example"]
    assert inbox.envelopes[0].smtp_utf8
    assert inbox.message()["Subject"] == "\u00e4"


async def test_an_international_mailbox_is_refused_without_smtputf8(listen: Listen) -> None:
    """A server that lacks it cannot take the address: final."""
    mailer = Mailer(settings(await listen(Inbox())))

    with pytest.raises(MailRefusedError, match="SMTPUTF8"):
        await mailer.send(**MAIL | {"to": "\u00fcser.canary7f3a@canary7f3a.example"})


@pytest.mark.parametrize(
    ("inbox", "final", "code"),
    [
        (Inbox(rcpt="550 5.1.1 <ada.canary7f3a@canary7f3a.example> unknown"), True, "550 5.1.1"),
        (Inbox(rcpt="450 4.2.1 <ada.canary7f3a@canary7f3a.example> busy"), False, "450 4.2.1"),
        (Inbox(data="554 5.7.1 spam from ada.canary7f3a@canary7f3a.example"), True, "554 5.7.1"),
        (Inbox(data="451 try again, ada.canary7f3a@canary7f3a.example"), False, "451"),
        (Inbox(data="421 closing"), False, "421"),
    ],
)
async def test_a_reply_decides_whether_to_try_again(listen: Listen, inbox: Inbox, final: bool, code: str) -> None:
    """4xx raises an error that is not final, 5xx a final one; both name the codes and no address."""
    mailer = Mailer(settings(await listen(inbox)))

    with pytest.raises(MailError, match=f"{code}$") as caught:
        await mailer.send(**MAIL)

    assert isinstance(caught.value, FinalError) is final
    assert caught.value.code == int(code[:3])


@pytest.mark.parametrize("login", [{}, {"username": "ada", "password": SecretStr("s3cret-canary7f3a")}])
@pytest.mark.parametrize("host", ["mail.example.com", "10.0.0.1", "localhost.example.com", "0.0.0.0", "::ffff:1.2.3.4"])  # noqa: S104
def test_mail_is_not_sent_in_clear_text(host: str, login: dict[str, Any]) -> None:
    """security=none off loopback stops the start with one line that names the setting, with a login or without."""
    with pytest.raises(SettingsError, match=r"\AASYNCBG_SMTP__SECURITY=none .+\Z") as caught:
        Mailer(settings(25, host=host, **login))

    assert "canary7f3a" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.1.2.3", "::1"])
def test_a_relay_on_this_machine_needs_no_encryption(host: str) -> None:
    """What is said to loopback leaves no machine."""
    assert isinstance(Mailer(settings(25, host=host)), Mailer)


async def test_the_refusal_of_some_recipients_is_reported(listen: Listen) -> None:
    """The others get the message, nobody sees another's address, and each refusal is told by its code."""

    class Choosy(Inbox):
        async def handle_RCPT(  # noqa: N802
            self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
        ) -> str:
            """Take some."""
            if address.startswith("full"):
                return "452 4.2.2 mailbox full"
            if address.startswith("gone"):
                return "550 5.1.1 <gone.canary7f3a@canary7f3a.example> unknown"
            envelope.rcpt_tos.append(address)
            return "250 OK"

    inbox = Choosy()
    to = [
        "gone.canary7f3a@canary7f3a.example",
        "ada.canary7f3a@canary7f3a.example",
        "full.canary7f3a@canary7f3a.example",
        "bob.canary7f3a@canary7f3a.example",
        "ada.canary7f3a@canary7f3a.example",
    ]

    sent = await Mailer(settings(await listen(inbox))).send(**MAIL | {"to": to})

    assert sorted(sent.refused) == [452, 550]
    assert inbox.envelopes[0].rcpt_tos == ["ada.canary7f3a@canary7f3a.example", "bob.canary7f3a@canary7f3a.example"]
    assert inbox.message()["To"] == "undisclosed-recipients:;"
    assert b"ada@" not in (inbox.envelopes[0].original_content or b"")


async def test_all_recipients_refused_is_a_refusal(listen: Listen) -> None:
    """Nothing was sent, so it is no success."""
    mailer = Mailer(settings(await listen(Inbox(rcpt="550 5.1.1 unknown"))))

    with pytest.raises(MailRefusedError, match="550"):
        await mailer.send(**MAIL | {"to": ["ada.canary7f3a@canary7f3a.example", "bob.canary7f3a@canary7f3a.example"]})


@pytest.mark.parametrize("count", [0, 51])
async def test_the_number_of_recipients_is_bounded(listen: Listen, count: int) -> None:
    """One to fifty; more are refused before anything is sent."""
    inbox = Inbox()
    mailer = Mailer(settings(await listen(inbox)))

    with pytest.raises(MailRefusedError, match="1 to 50 recipients"):
        await mailer.send(**MAIL | {"to": [f"a{n}@example.com" for n in range(count)]})

    assert inbox.envelopes == []


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\0", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("field", ["to", "subject", "sender", "name"])
async def test_no_line_break_makes_a_header(listen: Listen, field: str, end: str) -> None:
    """In the recipient, the subject, the sender or its name: refused, and nothing arrives."""
    inbox = Inbox()
    port = await listen(inbox)
    evil = {
        "to": f"ada.canary7f3a@canary7f3a.example{end}Bcc: eve.canary7f3a@canary7f3a.example",
        "subject": f"Hello{end}Bcc: eve.canary7f3a@canary7f3a.example",
        "sender": f"app@example.com{end}Bcc:eve.canary7f3a@canary7f3a.example",
        "name": f"Our{end}Bcc: eve.canary7f3a@canary7f3a.example App <app@example.com>",
    }[field]

    async def send() -> None:
        if field in {"to", "subject"}:
            await Mailer(settings(port)).send(**MAIL | {field: evil})
        section = SmtpSettings.model_construct(**(settings(port).model_dump() | {"sender": evil}))
        await Mailer(section).send(**MAIL)

    with pytest.raises((MailRefusedError, SettingsError)) as caught:
        await send()

    assert inbox.envelopes == []
    assert "eve" not in str(caught.value)


def accepts_login(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword
) -> AuthResult:
    """One user with one password."""
    return AuthResult(success=data == LoginPassword(b"app", b"s3cret-canary7f3a"), handled=False)


async def test_a_login_on_loopback_needs_no_encryption(listen: Listen) -> None:
    """A relay on this machine may be logged in to in clear text."""
    inbox = Inbox()
    port = await listen(inbox, authenticator=accepts_login, auth_require_tls=False)

    await Mailer(settings(port, username="app", password=SecretStr("s3cret-canary7f3a"))).send(**MAIL)

    assert inbox.sessions[0].authenticated


async def test_starttls_encrypts_before_the_login(listen: Listen, authority: trustme.CA, ca_file: Path) -> None:
    """With security=starttls, login and message go over verified TLS."""
    inbox = Inbox()
    port = await listen(inbox, tls_context=server_tls(authority), require_starttls=True, authenticator=accepts_login)
    section = settings(
        port, security="starttls", ca_file=ca_file, username="app", password=SecretStr("s3cret-canary7f3a")
    )

    await Mailer(section).send(**MAIL)

    assert inbox.sessions[0].ssl
    assert inbox.sessions[0].authenticated


async def test_what_is_said_before_starttls_ends_is_forgotten(authority: trustme.CA, ca_file: Path) -> None:
    """Replies injected in clear text behind the 220 of STARTTLS are no replies of the server (RFC 3207, 4.2)."""
    lines: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        lines.append(await reader.readline())
        writer.write(b"250-mx\r\n250 STARTTLS\r\n")
        lines.append(await reader.readline())
        writer.write(b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n")
        await writer.start_tls(server_tls(authority))
        lines.append(await reader.readline())
        writer.write(b"250 mx\r\n")
        lines.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    section = settings(
        port, security="starttls", ca_file=ca_file, username="app", password=SecretStr("s3cret-canary7f3a")
    )
    async with server:
        with pytest.raises(MailRefusedError, match="does not offer a login"):
            await Mailer(section).send(**MAIL)

    assert [line.split()[0] for line in lines if line] == [b"EHLO", b"STARTTLS", b"EHLO"]


async def test_tls_encrypts_from_the_first_byte(listen: Listen, authority: trustme.CA, ca_file: Path) -> None:
    """With security=tls the connection begins with the handshake."""
    inbox = Inbox()
    port = await listen(inbox, ssl=server_tls(authority))

    await Mailer(settings(port, security="tls", ca_file=ca_file)).send(**MAIL)

    assert inbox.message()["Subject"] == "Hello"


async def test_a_wrong_password_is_final_and_not_told(listen: Listen, authority: trustme.CA, ca_file: Path) -> None:
    """A refused login names the settings, neither user nor password."""
    port = await listen(Inbox(), tls_context=server_tls(authority), authenticator=accepts_login)
    section = settings(port, security="starttls", ca_file=ca_file, username="app", password=SecretStr("wr0ng"))

    with pytest.raises(MailRefusedError, match="ASYNCBG_SMTP__PASSWORD") as caught:
        await Mailer(section).send(**MAIL)

    assert "wr0ng" not in str(caught.value)
    assert caught.value.code == 535


async def test_a_server_without_starttls_gets_nothing(listen: Listen) -> None:
    """When STARTTLS is missing, or was stripped, neither password nor message is sent: final."""
    inbox = Inbox()
    port = await listen(inbox, authenticator=accepts_login, auth_require_tls=False)
    section = settings(port, security="starttls", username="app", password=SecretStr("s3cret-canary7f3a"))

    with pytest.raises(MailRefusedError, match="STARTTLS"):
        await Mailer(section).send(**MAIL)

    assert inbox.envelopes == []


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("flaw", ["unknown authority", "other name"])
async def test_an_unverified_certificate_gets_nothing(
    listen: Listen, authority: trustme.CA, ca_file: Path, security: str, flaw: str
) -> None:
    """An authority we do not trust, or a certificate for another host, fails naming the CA file setting."""
    inbox = Inbox()
    context = server_tls(authority, "localhost" if flaw == "unknown authority" else "mail.example.com")
    port = await listen(inbox, **({"ssl": context} if security == "tls" else {"tls_context": context}))
    trusted = {} if flaw == "unknown authority" else {"ca_file": ca_file}

    with pytest.raises(MailError, match="ASYNCBG_SMTP__CA_FILE"):
        await Mailer(settings(port, security=security, **trusted)).send(**MAIL)

    assert inbox.envelopes == []


@pytest.mark.parametrize("sender", ["Us, them <app@example.com>", "app"])
def test_a_malformed_sender_stops_the_start(sender: str) -> None:
    """A sender that mail would read as something else raises SettingsError that names the setting."""
    with pytest.raises(SettingsError, match="ASYNCBG_SMTP__SENDER"):
        Mailer(SmtpSettings.model_construct(**(settings(25).model_dump() | {"sender": sender})))


async def test_a_sender_may_have_any_name(listen: Listen) -> None:
    """A quoted or non-ASCII display name arrives as it was set."""
    inbox = Inbox()
    mailer = Mailer(settings(await listen(inbox), sender='"\u00dcs, them" <app@example.com>'))

    await mailer.send(**MAIL)

    (sender,) = inbox.message()["From"].addresses
    assert (sender.display_name, sender.addr_spec) == ("\u00dcs, them", "app@example.com")


def test_an_unreadable_ca_file_stops_the_start(tmp_path: Path) -> None:
    """A CA file that holds no certificate raises SettingsError that names the setting."""
    (tmp_path / "ca.pem").write_text("nonsense")

    with pytest.raises(SettingsError, match="ASYNCBG_SMTP__CA_FILE"):
        Mailer(settings(25, security="tls", ca_file=tmp_path / "ca.pem"))


async def test_nobody_listening_may_pass() -> None:
    """A refused connection raises MailError that is not final."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()

    with pytest.raises(MailError, match="cannot connect") as caught:
        await Mailer(settings(port, host="127.0.0.1")).send(**MAIL)

    assert not isinstance(caught.value, FinalError)


@pytest.mark.parametrize("said", [b"", b"220 mx", b"220 mx\r\n", b"220 mx\r\n250-mx\r\n"])
async def test_a_silent_server_is_left_at_the_deadline(talk: Callable[[bytes], Awaitable[int]], said: bytes) -> None:
    """A server that stops talking at any point raises MailError that is not final, in time."""
    mailer = Mailer(settings(await talk(said), timeout_s=0.2))

    async with asyncio.timeout(3):
        with pytest.raises(MailError, match="in time") as caught:
            await mailer.send(**MAIL)

    assert not isinstance(caught.value, FinalError)


async def test_a_cancelled_send_leaves_the_mailer_usable(
    talk: Callable[[bytes], Awaitable[int]], listen: Listen
) -> None:
    """After a send was cancelled in the middle, the next one works."""
    inbox = Inbox()
    mailer = Mailer(settings(await listen(inbox)))
    stuck = Mailer(settings(await talk(b"220 mx\r\n")))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await stuck.send(**MAIL)
    await mailer.send(**MAIL)

    assert len(inbox.envelopes) == 1


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=255))
def test_every_subject_line_decodes_to_its_subject(subject: str) -> None:
    """Whatever is not refused comes out of a mail parser as it went in."""
    if not subject.strip():
        return
    mail = Mail(to=["ada.canary7f3a@canary7f3a.example"], subject=subject, body="x", message_id=ID)

    raw = mail.render(Address("", "asyncbg", "localhost"), 1_800_000_000)

    assert message_from_bytes(raw, policy=policy.default)["Subject"] == subject
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
