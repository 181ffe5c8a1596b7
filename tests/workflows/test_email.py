"""E-mail over a real mail server, and what becomes of mail that it does not take."""

from collections.abc import Awaitable, Callable

import pytest

from asyncbg.settings import Settings, SmtpSettings
from asyncbg.testing import SmtpSink
from tests.unit.smtp_script import SmtpScript
from tests.workflows.conftest import Service, at_the_door, with_mail

Serve = Callable[[Settings], Awaitable[Service]]
MAIL = {
    "to_email": "ada.canary7f3a@canary7f3a.example",
    "subject": "Grüße canary7f3a",
    "body": "Hello Ada canary7f3a,\n\nsee you ✉\n",
}


@pytest.fixture
async def service(serve: Serve, settings: Settings, bg_smtp: SmtpSink) -> Service:
    """The service with a mail server."""
    return await serve(with_mail(settings, bg_smtp))


@pytest.mark.parametrize("form", ["json", "params"])
async def test_a_message_is_handed_over(service: Service, bg_smtp: SmtpSink, form: str) -> None:
    """Recipient, subject and body arrive as they were sent, from the query and from a JSON body."""
    [job] = await service.post("/send-email/", **{form: MAIL})

    [mail] = bg_smtp.messages
    message = mail.message
    assert job["state"] == "succeeded"
    assert mail.recipients == ("ada.canary7f3a@canary7f3a.example",)
    assert (message["Subject"], message["To"]) == ("Grüße canary7f3a", "ada.canary7f3a@canary7f3a.example")
    assert message.get_content().replace("\r\n", "\n") == MAIL["body"]


async def test_the_message_id_is_the_jobs(service: Service, bg_smtp: SmtpSink) -> None:
    """So a mail server can drop what it gets twice."""
    [job] = await service.post("/send-email/", json=MAIL)

    assert f"<{job['id']}@asyncbg>".encode() in bg_smtp.messages[0].content
    assert job["result"] == {"message_id": f"<{job['id']}@asyncbg>"}


async def test_the_event_email_sent_is_published(service: Service) -> None:
    """Before the job succeeds, and without personal data."""
    [job] = await service.post("/send-email/", json=MAIL)

    types = [event["type"] for event in await service.events(job["id"])]
    assert types.index("email.sent") < types.index("job.succeeded")
    assert "ada" not in str(await service.events(job["id"]))


async def test_mail_refused_for_now_is_tried_again(service: Service, bg_smtp: SmtpSink) -> None:
    """A 4xx reply costs an attempt, not the job."""
    bg_smtp.replies = ["451 4.3.0 try again later"]

    [job] = await service.post("/send-email/", json=MAIL)

    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    assert len(bg_smtp.messages) == 1


async def test_mail_refused_for_good_fails_at_once(service: Service, bg_smtp: SmtpSink) -> None:
    """A 5xx reply ends the job; the error names the code and nobody's address."""
    bg_smtp.replies = ["550 5.7.1 ada.canary7f3a@canary7f3a.example is not welcome"]

    [job] = await service.post("/send-email/", json=MAIL)

    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"]["type"] == "MailRefusedError"
    assert "550" in job["error"]["message"]
    assert "ada" not in str(job["error"])


async def test_mail_without_a_server_is_tried_again(serve: Serve, settings: Settings) -> None:
    """Where nobody listens the job waits for its next attempt; the server goes on."""
    service = await serve(settings)
    answer = await service.http.post("/send-email/", json=MAIL)

    events = await service.events(answer.json()["jobs"][0]["id"], until="job.retrying")

    assert events[-1]["data"]["error"]["type"] == "MailError"
    assert (await service.http.get("/health/ready")).status_code == 200


async def test_mail_is_scheduled_by_a_schedule_of_its_own(serve: Serve, settings: Settings) -> None:
    """With the default, a mail that is not taken is due again in a minute, and there are nine attempts more."""
    service = await serve(settings.model_copy(update={"smtp": SmtpSettings(host="127.0.0.1", port=9, security="none")}))
    job_id = (await service.http.post("/send-email/", json=MAIL)).json()["jobs"][0]["id"]

    events = await service.events(job_id, until="job.retrying")

    job = (await service.http.get(f"/jobs/{job_id}")).json()
    assert 57 <= events[-1]["data"]["delay_s"] <= 60
    assert (job["state"], job["attempt"], job["max_attempts"]) == ("scheduled", 1, 10)
    assert job["run_at"] > job["started_at"]


async def test_a_lost_answer_is_told_and_the_mail_repeated_with_its_id(serve: Serve, settings: Settings) -> None:
    """The job says that it is uncertain; the repeat has the same Message-ID, so that one of the two can be dropped."""
    async with SmtpScript({"EOD": [None, "250 ok"]}).running() as script:
        smtp = settings.smtp.model_copy(update={"port": script.port})
        service = await serve(settings.model_copy(update={"smtp": smtp}))
        [job] = await service.post("/send-email/", json=MAIL)
        retrying = [event for event in await service.events(job["id"]) if event["type"] == "job.retrying"]

    assert job["state"] == "succeeded"
    assert [event["data"]["error"]["type"] for event in retrying] == ["MailUncertainError"]
    assert [f"Message-ID: <{job['id']}@asyncbg>".encode() in mail for mail in script.mails] == [True, True]


async def test_a_message_may_have_all_that_mails_have(service: Service, bg_smtp: SmtpSink) -> None:
    """HTML beside the text, a file behind them, Reply-To and Cc in the head, Bcc only on the envelope."""
    file = {"file": ("../Grüße canary7f3a.pdf", b"%PDF-1.7 canary7f3a")}
    upload = (await service.http.post("/attachments", files=file)).json()
    more = {
        "html": "<p>Hello Ada canary7f3a</p>",
        "reply_to": "desk.canary7f3a@canary7f3a.example",
        "cc": ["bob.canary7f3a@canary7f3a.example"],
        "bcc": ["eve.canary7f3a@canary7f3a.example"],
        "attachments": [upload["path"]],
    }

    [job] = await service.post("/send-email/", json=MAIL | more)

    [mail] = bg_smtp.messages
    assert job["state"] == "succeeded"
    assert mail.recipients == (MAIL["to_email"], *more["cc"], *more["bcc"])
    assert (mail.message["Reply-To"], mail.message["Cc"]) == (more["reply_to"], more["cc"][0])
    assert b"eve" not in mail.content
    html = mail.message.get_body(("html",))
    assert html is not None
    assert html.get_content().strip() == more["html"]
    [attached] = mail.message.iter_attachments()
    assert (attached.get_filename(), attached.get_content_type()) == ("Grüße canary7f3a.pdf", "application/pdf")
    assert attached.get_content() == b"%PDF-1.7 canary7f3a"
    assert job["result"]["recipients"] == [{"recipient": n, "code": 250, "outcome": "sent"} for n in (1, 2, 3)]


async def test_each_recipient_has_an_outcome(serve: Serve, settings: Settings) -> None:
    """Who is refused stays refused; who may be taken later gets the message by a job of its own."""
    async with SmtpScript({"RCPT": ["250 ok", "550 5.1.1 no", "450 4.2.1 busy", "250 ok"]}).running() as script:
        smtp = settings.smtp.model_copy(update={"port": script.port})
        service = await serve(settings.model_copy(update={"smtp": smtp}))
        cc = ["bob.canary7f3a@canary7f3a.example", "cem.canary7f3a@canary7f3a.example"]
        [job] = await service.post("/send-email/", json=MAIL | {"cc": cc})
        later = await service.final(job["result"]["later"])

    assert [one["outcome"] for one in job["result"]["recipients"]] == ["sent", "refused", "later"]
    assert (later["state"], later["result"]) == ("succeeded", {"message_id": job["result"]["message_id"]})
    assert [line for line in script.lines if line.startswith("RCPT")][3:] == [f"RCPT TO:<{cc[1]}>"]
    assert len({mail.split(b"Message-ID: ")[1].split(b"\r\n")[0] for mail in script.mails}) == 1


@at_the_door
@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../data/notifications.log", "/attachments/" + "0" * 32 + "/../x",
     "/attachments/" + "0" * 32 + "/x", "file:///etc/passwd", "/attachments/abc/x", ""],
)  # fmt: skip
async def test_only_files_of_ours_are_attached(door: Service, path: str) -> None:
    """A path that no upload was answered with is refused, whatever it names."""
    answer = await door.http.post("/send-email/", json=MAIL | {"attachments": [path]})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][:2] == ["body", "attachments"]


@at_the_door
async def test_an_attachment_is_bounded(door: Service) -> None:
    """413 over 10 MiB."""
    answer = await door.http.post("/attachments", files={"file": ("a.bin", bytes(10 * 1024 * 1024 + 1))})

    assert answer.status_code == 413


@at_the_door
@pytest.mark.parametrize(
    "change",
    [
        {"cc": ["nobody"]},
        {"bcc": ["ada.canary7f3a@nas.local"]},
        {"reply_to": "a.canary7f3a@canary7f3a.example\r\nBcc: eve"},
        {"bcc": [f"a{n}.canary7f3a@canary7f3a.example" for n in range(50)]},
        {"html": "a\0b"},
        {"attachments": ["/x"] * 11},
    ],
)
async def test_what_is_optional_is_checked_too(door: Service, change: dict[str, object]) -> None:
    """422 names the field."""
    answer = await door.http.post("/send-email/", json=MAIL | change)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][:2] == ["body", next(iter(change))]
    assert "eve" not in answer.text


@at_the_door
@pytest.mark.parametrize("domain", ["mail.local", "home.arpa", "localhost"])
async def test_a_special_use_domain_is_refused_by_its_name(door: Service, domain: str) -> None:
    """422 names the domain and the setting, and nothing else of the address."""
    answer = await door.http.post("/send-email/", json=MAIL | {"to_email": f"ada.canary7f3a@{domain}"})

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["loc"][-1] == "to_email"
    assert f"the domain {domain} is a special-use name" in error["msg"]
    assert "ASYNCBG_SMTP__ALLOW_SPECIAL_USE=true" in error["msg"]
    assert "ada" not in answer.text


async def test_a_special_use_domain_is_sent_to_where_that_is_set(
    serve: Serve, settings: Settings, bg_smtp: SmtpSink
) -> None:
    """ASYNCBG_SMTP__ALLOW_SPECIAL_USE."""
    settings = with_mail(settings, bg_smtp)
    smtp = settings.smtp.model_copy(update={"allow_special_use": True})
    service = await serve(settings.model_copy(update={"smtp": smtp}))

    [job] = await service.post("/send-email/", json=MAIL | {"to_email": "ada.canary7f3a@nas.local"})

    assert job["state"] == "succeeded"
    assert bg_smtp.messages[0].recipients == ("ada.canary7f3a@nas.local",)


@at_the_door
@pytest.mark.parametrize(
    "change",
    [
        {"to_email": "nobody"},
        {"to_email": "ada.canary7f3a@canary7f3a.example\r\nBcc: eve.canary7f3a@canary7f3a.example"},
        {"to_email": "ada.canary7f3a@canary7f3a.example, eve.canary7f3a@canary7f3a.example"},
        {"subject": ""},
        {"subject": "   "},
        {"subject": "x" * 256},
        {"subject": "hello\r\nBcc: eve.canary7f3a@canary7f3a.example"},
        {"subject": "hello\nthere"},
        {"body": "a\0b"},
        {"body": "€" * 400_000},
    ],
)
async def test_a_bad_message_is_refused(door: Service, change: dict[str, str]) -> None:
    """422 says which field, and repeats nothing of it."""
    answer = await door.http.post("/send-email/", json=MAIL | change)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", next(iter(change))]
    assert "eve" not in answer.text


@at_the_door
@pytest.mark.parametrize("missing", ["to_email", "subject", "body"])
async def test_every_field_is_required(door: Service, missing: str) -> None:
    """What is missing is named."""
    answer = await door.http.post("/send-email/", json={k: v for k, v in MAIL.items() if k != missing})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", missing]


async def test_a_body_over_http_may_be_split_over_both_forms(service: Service, bg_smtp: SmtpSink) -> None:
    """Each field once, wherever it stands."""
    await service.post(
        "/send-email/", params={"subject": "Hello canary7f3a"}, json={k: MAIL[k] for k in ("to_email", "body")}
    )

    assert len(bg_smtp.messages) == 1
