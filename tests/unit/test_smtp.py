"""The SMTP conversation against servers that say anything at any step: what is taken, final, tried again, uncertain."""

import re
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from tests.unit.smtp_script import SmtpScript

from asyncbg.errors import FinalError
from asyncbg.service.integrations.mail_message import Attachment
from asyncbg.service.integrations.mailer import Mailer, MailError, MailUncertainError, Sent
from asyncbg.service.integrations.smtp import after_dot_s
from asyncbg.settings import SmtpSettings

MAIL: dict[str, Any] = {
    "to": "ada.canary7f3a@canary7f3a.example", "subject": "Hello", "body": "How are you?\n.hidden\n",
    "message_id": "<1@asyncbg>",
}  # fmt: skip
STEPS = ["BANNER", "EHLO", "MAIL", "RCPT", "DATA", "EOD"]


def settings(port: int, **fields: Any) -> SmtpSettings:
    """A section for a server on loopback."""
    return SmtpSettings(**({"host": "127.0.0.1", "port": port, "security": "none", "timeout_s": 30} | fields))


async def send(say: dict[str, Any], *, to: Any = MAIL["to"], **fields: Any) -> tuple[Sent, SmtpScript]:
    """Send the mail to a server that says so."""
    async with SmtpScript(say).running() as server:
        return await Mailer(settings(server.port, **fields)).send(**MAIL | {"to": to}), server


async def error_of(say: dict[str, Any], **fields: Any) -> MailError:
    """The error that sending to such a server ends in."""
    with pytest.raises(MailError) as caught:
        await send(say, **fields)
    assert "canary7f3a" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "say",
    [
        *({step: code} for step in STEPS if step != "DATA" for code in ("200", "252 ok", "299 x")),
        {"DATA": "399 go"},
        {"DATA": "354"},
        {"BANNER": "220-a\r\n220-b\r\n220 c"},
        {"EOD": "250-one\r\n250-two\r\n250 three"},
        {"EOD": "250-\r\n250"},
        {"MAIL": b"250 Gr\xfc\xdfe\r\n"},
        {"MAIL": b"250 ok\n"},
        {"MAIL": b"250\tok\r\n"},
        {"EOD": b"\r\n250 ok queued\r\n"},
        {"RCPT": b"\r\n\n \r\n250 ok\r\n"},
        *({step: b"250 ok\r\n\r\n"} for step in ("MAIL", "RCPT")),
        {"BANNER": b"220 mx\n\r\n"},
        {"EHLO": b"250-\r\n250 SIZE 1000\r\n"},
        {"EHLO": "502 no"},
        {"EHLO": "500 no"},
        {"QUIT": None},
        {"QUIT": "500 no"},
        {"QUIT": b"\xff\r\n"},
    ],
)  # fmt: skip
async def test_a_message_is_taken_by_the_first_digit(say: dict[str, Any]) -> None:
    """2yz of any number is success (3yz to DATA), however the reply is laid out, and QUIT decides nothing."""
    sent, server = await send(say)

    assert sent == Sent("<1@asyncbg>")
    assert server.mails[0].endswith(b"\r\n..hidden\r\n.\r\n")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", ["400", "421 4.3.2 busy", "450", "451 4.7.1 greylisted", "499 odd"])
async def test_a_4yz_reply_may_pass_at_every_step(step: str, code: str) -> None:
    """Not final, and the error has the code and the first delay of the schedule."""
    error = await error_of({step: code})

    assert not isinstance(error, FinalError | MailUncertainError)
    assert error.code == int(code[:3])
    assert error.retry_after_s is not None
    assert 57 <= error.retry_after_s <= 60


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", ["500", "521 no", "550 5.1.1 no", "599 odd"])
async def test_a_5yz_reply_is_final_at_every_step(step: str, code: str) -> None:
    """By its first digit, whatever the others are."""
    error = await error_of({step: code, "HELO": code})

    assert isinstance(error, FinalError)
    assert error.code == int(code[:3])


@pytest.mark.parametrize("step", ["BANNER", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("said", [b"2x0 ok\r\n", b"\xff\xfe\x00\r\n", b"999 ok\r\n", b"100 ok\r\n", b"25 ok\r\n",
                                  b"2500 ok\r\n", b"a" * 70_000, b"250-x\r\n" * 20_000, None, b"250"])  # fmt: skip
async def test_what_is_no_reply_may_pass(step: str, said: bytes | None) -> None:
    """Garbage, endless replies, codes out of range and a connection that is lost are tried again."""
    error = await error_of({step: said}, timeout_s=1)

    assert not isinstance(error, FinalError | MailUncertainError)
    assert "-1" not in str(error)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (b"HTTP/1.0 503 Service Unavailable\r\n\r\n", "an HTTP server"),
        (b"HTTP/1.1 400 Bad", "an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "an SSH server"),
        (b"+OK POP3 ready\r\n", "a POP3 server"),
        (b"* OK IMAP4rev1\r\n", "an IMAP server"),
        (b"\x15\x03\x01\x00\x02\x02\x46\n", "TLS from the first byte"),
        (b"\x15\x03\x03\x00\x02\x02\x50", "TLS from the first byte"),
        (b"hello\r\n", "garbage"),
        (..., "silent at the greeting"),
        (None, "lost at the greeting"),
    ],
)
async def test_what_does_not_speak_smtp_is_named(said: object, named: str) -> None:
    """The error says what is there instead of a mail server, and is tried again."""
    error = await error_of({"BANNER": said}, timeout_s=0.3)

    assert named in str(error)
    assert not isinstance(error, FinalError)


@pytest.mark.parametrize("step", ["BANNER", "EHLO", "MAIL", "RCPT", "DATA"])
async def test_each_step_has_the_time_of_the_setting(step: str) -> None:
    """A server that falls silent at a step is left after that time; the error names the step."""
    error = await error_of({step: ...}, timeout_s=0.2)

    assert "in time (ASYNCBG_SMTP__TIMEOUT_S)" in str(error)
    assert ("greeting" if step == "BANNER" else step) in str(error)


@pytest.mark.parametrize(("step_s", "dot_s"), [(10, 600), (0.1, 6), (60, 600), (600, 600)])
def test_the_answer_to_the_final_dot_has_ten_minutes(step_s: float, dot_s: float) -> None:
    """With the default of ten seconds a step; in proportion below, never less than a step (RFC 5321, 4.5.3.2.6)."""
    assert after_dot_s(step_s) == dot_s


@pytest.mark.parametrize("said", [None, ..., b"\xff\r\n", "354 more", b"250"])
async def test_an_answer_that_got_lost_is_uncertain(said: object) -> None:
    """Behind the final dot the message may have been taken: an error of its own, repeated after an hour."""
    error = await error_of({"EOD": said}, timeout_s=0.1 if said in (..., b"250") else 30)

    assert isinstance(error, MailUncertainError)
    assert not isinstance(error, FinalError)
    assert "uncertain" in str(error)
    assert error.retry_after_s == 3_600


async def test_a_message_cut_off_before_the_dot_is_not_uncertain() -> None:
    """What a server has not seen the end of, it does not deliver."""
    assert not isinstance(await error_of({"DATA": None}), MailUncertainError)


LARGE = {"attachments": [Attachment("a.bin", bytes(12 * 1024 * 1024))]}  # more than the buffers of a connection hold


@pytest.mark.parametrize("said", [None, ["250 ok", None]])
async def test_a_large_message_cut_off_in_the_middle_is_not_uncertain(said: object) -> None:
    """The final dot was not sent when the connection was lost, and a 250 before it counts for nothing."""
    async with SmtpScript({"BODY": said}).running() as server:
        with pytest.raises(MailError, match="lost at the message") as caught:
            await Mailer(settings(server.port)).send(**MAIL | LARGE)

    assert not isinstance(caught.value, FinalError | MailUncertainError)


@pytest.mark.parametrize("more", [{}, LARGE])
async def test_a_refusal_in_the_middle_of_a_message_counts(more: dict[str, Any]) -> None:
    """A server need not read a message to its end to refuse it."""
    async with SmtpScript({"BODY": ["552 5.3.4 too big", ...]}).running() as server:
        with pytest.raises(MailError, match=r"refused the message: 552 5\.3\.4") as caught:
            await Mailer(settings(server.port)).send(**MAIL | more)

    assert isinstance(caught.value, FinalError)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("250 go", "does not fit the command: 250"),
        ("454 4.7.0 later", "refused STARTTLS (ASYNCBG_SMTP__SECURITY): 454 4.7.0"),
        ("502 no", "refused STARTTLS"),
        (None, "lost at STARTTLS"),
        ("220 go", "no verified TLS connection"),
        (b"220 go\r\n250-mx\r\n250 AUTH PLAIN\r\n", "no verified TLS connection"),
    ],
)
async def test_nothing_is_said_before_the_connection_is_encrypted(said: object, named: str) -> None:
    """Whatever a server answers to STARTTLS: no login and no message goes out in clear text."""
    say = {"EHLO": "250-mx\r\n250-\r\n250-STARTTLS\r\n250 AUTH PLAIN", "STARTTLS": said}
    async with SmtpScript(say).running() as server:
        with pytest.raises(MailError, match=re.escape(named)):
            await Mailer(settings(server.port, security="starttls", timeout_s=5, **LOGIN)).send(**MAIL)

    assert not any(line.startswith(("AUTH", "MAIL")) for line in server.lines)
    assert server.lines[1] == "STARTTLS"


async def test_extensions_are_read_behind_an_empty_first_line() -> None:
    """The first line of the answer to EHLO is a name, not an extension, also where it is empty."""
    _, server = await send({"EHLO": "250-\r\n250 AUTH PLAIN"}, **LOGIN)

    assert server.lines[1].startswith("AUTH PLAIN ")


@pytest.mark.parametrize(
    ("say", "blamed"),
    [
        ({"MAIL": "530 5.7.0 Must issue a STARTTLS command first"}, "wants STARTTLS first (ASYNCBG_SMTP__SECURITY)"),
        ({"RCPT": "530 5.7.0 encryption needed"}, "wants STARTTLS first"),
        ({"MAIL": "530 5.7.0 Authentication required"}, "wants a login first (ASYNCBG_SMTP__USERNAME"),
        ({"RCPT": "550 5.7.1 Authentication required"}, "wants a login first"),
        ({"MAIL": "503 AUTH first"}, "wants a login first"),
        ({"EHLO": "504 5.5.2 unqualified", "HELO": "504 5.5.2 no"}, "our EHLO name (ASYNCBG_SMTP__EHLO)"),
        ({"RCPT": "504 5.5.2 <3f2a9c1b7d5e>: Helo command rejected: need fully-qualified hostname"}, "our EHLO name"),
        ({"EHLO": "450 4.7.1 later"}, "our EHLO name"),
        ({"MAIL": "553 5.1.8 no such domain"}, "refused the sender (ASYNCBG_SMTP__SENDER)"),
        ({"MAIL": "501 syntax"}, "refused the sender"),
        ({"RCPT": "550 5.1.8 <a@b>: Sender address rejected: Domain not found"}, "refused the sender"),
        ({"RCPT": "550 Sender verify failed"}, "refused the sender"),
        ({"RCPT": "550 5.1.1 no such user"}, "refused the recipient"),
        ({"EOD": "550 5.1.1 no such user"}, "refused the recipient"),
        ({"RCPT": "552 5.2.2 over quota"}, "refused the recipient"),
        ({"MAIL": "552 5.3.4 too big"}, "refused the message"),
        ({"MAIL": "552 size"}, "refused the message"),
        ({"MAIL": "452 4.3.1 insufficient storage"}, "refused the message"),
        ({"EOD": "554 5.7.1 spam"}, "refused the message"),
        ({"BANNER": "554 no"}, "refused the connection"),
        ({"RCPT": "421 4.7.0 bye"}, "refused the connection"),
    ],
)  # fmt: skip
async def test_the_right_part_is_blamed(say: dict[str, Any], blamed: str) -> None:
    """Wherever a server says it: login, STARTTLS, our name, sender, recipient or message, with its setting."""
    assert blamed in str(await error_of(say))


LOGIN = {"username": "app", "password": SecretStr("s3cret-canary7f3a")}


@pytest.mark.parametrize(
    ("auth", "code", "blamed"),
    [
        ("535 5.7.8 bad credentials", 535, "refused the login (ASYNCBG_SMTP__USERNAME, ASYNCBG_SMTP__PASSWORD)"),
        ("454 4.7.0 later", 454, "refused the login"),
        ("538 5.7.11 encryption required", 538, "wants STARTTLS first"),
    ],
)
async def test_a_refused_login_is_blamed(auth: str, code: int, blamed: str) -> None:
    """By its first digit final or not, and never with the password."""
    error = await error_of({"EHLO": "250-mx\r\n250 AUTH PLAIN", "AUTH": auth}, **LOGIN)

    assert blamed in str(error)
    assert (error.code, isinstance(error, FinalError)) == (code, code > 499)


@pytest.mark.parametrize(
    ("offered", "replies", "said"),
    [
        ("AUTH PLAIN LOGIN", ["235 ok"], ["AUTH PLAIN AGFwcABzM2NyZXQtY2FuYXJ5N2YzYQ=="]),
        ("AUTH=LOGIN", ["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 ok"], ["AUTH LOGIN", "app", "s3cret-canary7f3a"]),
        ("AUTH PLAIN LOGIN", ["504 no", "334 x", "334 x", "200"],
         ["AUTH PLAIN AGFwcABzM2NyZXQtY2FuYXJ5N2YzYQ==", "AUTH LOGIN", "app", "s3cret-canary7f3a"]),
        ("AUTH CRAM-MD5", ["334 PDFAYT4=", "235"], ["AUTH CRAM-MD5", "app <digest>"]),
    ],
)  # fmt: skip
async def test_a_login_takes_the_mechanism_that_is_offered(offered: str, replies: list[str], said: list[str]) -> None:
    """PLAIN, LOGIN or CRAM-MD5; the next one where a server does not take the first after all."""
    _, server = await send({"EHLO": f"250-mx\r\n250-8BITMIME\r\n250 {offered}", "AUTH": replies}, **LOGIN)

    assert server.lines[1 : len(said) + 1][:-1] == said[:-1]
    assert server.lines[len(said)].split()[0] == said[-1].split()[0]


async def test_a_login_that_is_not_offered_is_final() -> None:
    """Nothing is said of the password to a server without AUTH."""
    error = await error_of({}, **LOGIN)

    assert isinstance(error, FinalError)
    assert "does not offer a login" in str(error)


async def test_ehlo_says_the_address_of_our_end() -> None:
    """Never the bare name of a machine or a container (RFC 5321, 4.1.4)."""
    _, server = await send({})

    assert server.lines[0] == "EHLO [127.0.0.1]"


@pytest.mark.parametrize("name", ["mail.example.com", "[192.0.2.7]", "[IPv6:2001:db8::7]", "xn--bcher-kva.example"])
async def test_ehlo_says_the_name_that_is_set(name: str) -> None:
    """ASYNCBG_SMTP__EHLO, to HELO as well."""
    _, server = await send({"EHLO": "502 no"}, ehlo=name)

    assert server.lines[:2] == [f"EHLO {name}", f"HELO {name}"]


@pytest.mark.parametrize(
    "name",
    ["3f2a9c1b7d5e", "localhost", "my_host.example.com", "127.0.0.1", "[300.1.1.1]", "a..b", "[::1]", "-a.example",
     "a.example\r\nMAIL", "bücher.example", "[IPv6:x]"],
)  # fmt: skip
def test_an_unqualified_name_is_refused(name: str) -> None:
    """What servers refuse in EHLO stops the start."""
    with pytest.raises(ValidationError, match="qualified name"):
        settings(25, ehlo=name)


async def test_each_recipient_has_an_outcome() -> None:
    """Some are taken, some refused, some later; the message goes to those that were taken."""
    to = [f"{name}.canary7f3a@canary7f3a.example" for name in ("ada", "bob", "eve")]

    sent, server = await send({"RCPT": ["450 4.2.1 busy", "254 ok", "550 5.1.1 gone"]}, to=to)

    assert (sent.replies, sent.refused, sent.later) == ((450, 254, 550), (450, 550), (to[0],))
    assert len(server.mails) == 1


async def test_as_long_as_one_recipient_may_be_taken_later_it_is_not_final() -> None:
    """All refused, one of them only for now."""
    to = ["ada.canary7f3a@canary7f3a.example", "bob.canary7f3a@canary7f3a.example"]

    assert not isinstance(await error_of({"RCPT": ["550 no", "451 later"]}, to=to), FinalError)


@pytest.mark.parametrize(("attempt", "delay_s"), [(1, 60), (2, 300), (3, 900), (4, 3_600), (9, 57_600), (20, 57_600)])
def test_mail_is_tried_again_for_two_days(attempt: int, delay_s: float) -> None:
    """After 1, 5, 15 and 60 minutes and then ever later, a little sooner by chance."""
    mailer = Mailer(settings(25))

    assert delay_s * 0.95 <= mailer.delay_s(attempt) <= delay_s
    assert mailer.retries == 9
    assert 47 * 3_600 < sum(SmtpSettings().schedule_s) <= 48 * 3_600


@pytest.mark.parametrize(("schedule_s", "delay_s"), [((1, 2), 2), ((), 0), ((60, 7_200), 3_600), ((7_200,), 7_200)])
def test_an_uncertain_message_is_repeated_late(schedule_s: tuple[float, ...], delay_s: float) -> None:
    """After an hour, or after the longest delay of a schedule that has none of an hour."""
    mailer = Mailer(settings(25, schedule_s=schedule_s))

    assert delay_s * 0.95 <= mailer.delay_s(1, is_uncertain=True) <= delay_s


@pytest.mark.parametrize("address", ["ada@mail.local", "ada@home.arpa", "ada@nas.home.arpa", "ada@localhost"])
async def test_a_special_use_domain_is_sent_to_where_that_is_set(address: str) -> None:
    """ASYNCBG_SMTP__ALLOW_SPECIAL_USE=true; without it the error names the domain and the setting."""
    with pytest.raises(MailError, match=rf"the domain {address[4:]} .* ASYNCBG_SMTP__ALLOW_SPECIAL_USE=true") as caught:
        await send({}, to=address)
    _, server = await send({}, to=address, allow_special_use=True)

    assert isinstance(caught.value, FinalError)
    assert server.lines[2] == f"RCPT TO:<{address}>"


async def test_the_size_is_said_where_it_is_asked_for() -> None:
    """SIZE of RFC 1870 lets a server refuse what is too large before it is sent."""
    _, server = await send({})

    assert server.lines[1] == f"MAIL FROM:<asyncbg@localhost> SIZE={len(server.mails[0]) - 3}"
