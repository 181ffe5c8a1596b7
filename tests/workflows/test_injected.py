"""A task that gets its parts injected when it runs."""

from collections.abc import Awaitable, Callable

from asyncbg.settings import Settings, SmtpSettings
from asyncbg.testing import SmtpSink
from tests.workflows.conftest import Service, with_mail

Serve = Callable[[Settings], Awaitable[Service]]


async def test_the_action_is_logged_and_mailed(serve: Serve, settings: Settings, bg_smtp: SmtpSink) -> None:
    """The operator, who is the configured sender, gets a message; the activity log gains a row."""
    service = await serve(with_mail(settings, bg_smtp))

    [job] = await service.post("/action/7", params={"action": "login canary7f3a"})

    assert (job["task"], job["state"]) == ("notification_task", "succeeded")
    assert bg_smtp.messages[0].recipients == ("service@example.com",)
    assert (await service.http.get("/user/7/statistics")).json()["by_action"] == {"login canary7f3a": 1}


async def test_without_a_mail_server_the_log_is_used(serve: Serve, settings: Settings) -> None:
    """A service that no mail server is configured for writes the notification log instead."""
    service = await serve(settings.model_copy(update={"smtp": SmtpSettings()}))

    [job] = await service.post("/action/7", json={"action": "login canary7f3a"})

    assert job["state"] == "succeeded"
    assert service.log == ["notification for user 7: login canary7f3a"]


async def test_a_repeated_attempt_adds_no_second_row(serve: Serve, settings: Settings, bg_smtp: SmtpSink) -> None:
    """The row belongs to the job, not to the attempt."""
    service = await serve(with_mail(settings, bg_smtp))
    bg_smtp.replies = ["451 later"]

    [job] = await service.post("/action/7", params={"action": "login canary7f3a"})

    assert job["attempt"] == 2
    assert (await service.http.get("/user/7/statistics")).json()["total"] == 1
