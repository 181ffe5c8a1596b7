"""The peers of a test: a mail server and a web server that are really there."""

import asyncio
from email.message import EmailMessage

import aiohttp
import aiosmtplib
import pytest
from aiohttp import web

from asyncbg.service.integrations.mailer import Mailer
from asyncbg.settings import load_settings
from asyncbg.testing import SmtpSink, WebPeer


def message(text: str = "Hello ✉") -> EmailMessage:
    """A small message."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = (
        "a.canary7f3a@canary7f3a.example",
        "b.canary7f3a@canary7f3a.example",
        "Grüße",
    )
    mail.set_content(text)
    return mail


async def test_a_message_is_kept_with_its_envelope(bg_smtp: SmtpSink) -> None:
    """Who sent it, to whom, and the message itself, parsed."""
    await aiosmtplib.send(message(), hostname=bg_smtp.host, port=bg_smtp.port, start_tls=False)

    [mail] = bg_smtp.messages
    assert (mail.sender, mail.recipients) == ("a.canary7f3a@canary7f3a.example", ("b.canary7f3a@canary7f3a.example",))
    assert mail.message["Subject"] == "Grüße"
    assert mail.message.get_content().strip() == "Hello ✉"


async def test_a_prepared_reply_is_given_once(bg_smtp: SmtpSink) -> None:
    """In the place of taking a message; the next one is taken."""
    bg_smtp.replies = ["451 4.3.0 try again later"]

    with pytest.raises(aiosmtplib.SMTPDataError, match="try again"):
        await aiosmtplib.send(message(), hostname=bg_smtp.host, port=bg_smtp.port, start_tls=False)
    await aiosmtplib.send(message(), hostname=bg_smtp.host, port=bg_smtp.port, start_tls=False)

    assert len(bg_smtp.messages) == 1


async def test_asyncbgs_own_mailer_takes_its_settings(bg_smtp: SmtpSink) -> None:
    """``bg_smtp.settings`` is what the settings of the mailer want."""
    settings = load_settings(smtp=bg_smtp.settings)

    await Mailer(settings.smtp).send(
        to="b.canary7f3a@canary7f3a.example", subject="Hi", body="there", message_id="<1@example.com>"
    )

    assert bg_smtp.messages[0].message["Message-ID"] == "<1@example.com>"


async def test_requests_are_kept_and_answered_as_told(bg_web: WebPeer) -> None:
    """By a JSON value, a response, a function, a coroutine function; 404 where nothing is set."""

    async def later(request: web.Request) -> object:
        await asyncio.sleep(0)
        return {"query": request.query["q"]}

    bg_web.answers = {
        "/value": [1, 2],
        "/response": web.Response(status=503, headers={"Retry-After": "1"}),
        "/function": lambda request: {"method": request.method},
        "/coroutine": later,
    }
    async with aiohttp.ClientSession(bg_web.url) as http:
        assert await (await http.get("/value")).json() == [1, 2]
        assert (await http.get("/response")).status == 503
        assert await (await http.put("/function", json={"a": 1}, headers={"X-Token": "t"})).json() == {"method": "PUT"}
        assert await (await http.get("/coroutine?q=x")).json() == {"query": "x"}
        assert (await http.get("/nothing")).status == 404

    [put] = bg_web.to("/function")
    assert (put.method, put.json(), put.headers["x-token"]) == ("PUT", {"a": 1}, "t")
    assert [request.path for request in bg_web.requests] == [
        "/value",
        "/response",
        "/function",
        "/coroutine",
        "/nothing",
    ]
    assert bg_web.to("/coroutine")[0].query == {"q": "x"}
