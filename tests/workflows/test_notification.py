"""Notifications, from the request to the line in the log, and the two forms in which its message may come."""

import pytest

from tests.workflows.conftest import Service, at_the_door

ADA = "/send-notification/ada.canary7f3a@canary7f3a.example"


async def test_a_notification_becomes_one_line(service: Service) -> None:
    """The message is appended for the address."""
    [job] = await service.post(ADA, params={"message": "hello canary7f3a"})

    assert (job["task"], job["state"]) == ("send_notification", "succeeded")
    assert service.log == ["notification for ada.canary7f3a@canary7f3a.example: hello canary7f3a"]


async def test_the_answer_names_the_job(service: Service) -> None:
    """202, with Location, the job's URL and the streams to follow it by."""
    answer = await service.http.post(ADA)

    [job] = answer.json()["jobs"]
    assert answer.status_code == 202
    assert answer.headers["location"] == job["url"] == f"/jobs/{job['id']}"
    assert job["events_url"] == f"/jobs/{job['id']}/events"
    assert answer.json()["events_url"] == f"/events?batch={job['id']}"


async def test_the_message_has_a_default(service: Service) -> None:
    """Nothing has to be said."""
    await service.post(ADA)

    assert service.log == ["notification for ada.canary7f3a@canary7f3a.example: some notification"]


async def test_the_message_may_come_as_json(service: Service) -> None:
    """A body keeps the message out of the access log."""
    await service.post(ADA, json={"message": "grüße canary7f3a"})

    assert service.log == ["notification for ada.canary7f3a@canary7f3a.example: grüße canary7f3a"]


async def test_a_line_break_does_not_forge_a_line(service: Service) -> None:
    """One notification is one line, whatever is in it."""
    await service.post(ADA, json={"message": "a\nnotification for eve.canary7f3a@canary7f3a.example: b"})

    assert len(service.log) == 1


async def test_query_and_body_may_agree(service: Service) -> None:
    """The same value in both forms is no contradiction."""
    await service.post(ADA, params={"message": "same"}, json={"message": "same"})

    assert service.log == ["notification for ada.canary7f3a@canary7f3a.example: same"]


async def test_the_arguments_are_shown_masked(service: Service) -> None:
    """Neither the address nor the message can be read from the job or the list."""
    [job] = await service.post(ADA, params={"message": "hello secret canary7f3a"})

    shown = (await service.http.get(f"/jobs/{job['id']}")).text + (await service.http.get("/jobs")).text
    assert "ada.canary7f3a@canary7f3a.example" not in shown
    assert "secret" not in shown


@at_the_door
@pytest.mark.parametrize(
    "address",
    [
        "nobody",
        "a@b",
        "a b.canary7f3a@canary7f3a.example",
        "a.canary7f3a@example..com",
        "%0d%0aBcc:x.canary7f3a@example.com",
    ],
)
async def test_a_bad_address_is_refused(door: Service, address: str) -> None:
    """422 as a problem document that does not repeat the address."""
    answer = await door.http.post(f"/send-notification/{address}")

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["loc"] == ["path", "email"]
    assert "input" not in answer.text


@at_the_door
@pytest.mark.parametrize(
    "sent",
    [
        {"params": {"message": ""}},
        {"params": {"message": "x" * 4097}},
        {"params": {"message": "a\0b"}},
        {"params": [("message", "a"), ("message", "b")]},
        {"params": {"message": "a"}, "json": {"message": "b"}},
        {"json": {"message": 7}},
        {"json": {"message": None}},
        {"json": ["message"]},
        {"content": b'{"message": "\\ud800"}', "headers": {"content-type": "application/json"}},
        {"json": {"message": "a", "mesage": "b"}},
        {"params": {"mesage": "b"}},
    ],
)
async def test_a_bad_message_is_refused(door: Service, sent: dict[str, object]) -> None:
    """Empty, too long, not text, contradictory or unknown: 422, and nothing is stored."""
    answer = await door.http.post(ADA, **sent)  # type: ignore[arg-type]  # what httpx takes

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await door.http.get("/jobs")).json()["items"] == []


@at_the_door
async def test_a_body_that_is_not_json_is_refused(door: Service) -> None:
    """415 names the media type that is taken."""
    answer = await door.http.post(ADA, data={"message": "form"})

    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


@at_the_door
async def test_a_huge_body_is_refused(door: Service) -> None:
    """413 before it is held in memory."""
    answer = await door.http.post(ADA, content=b" " * 9_000_000, headers={"content-type": "application/json"})

    assert answer.status_code == 413
