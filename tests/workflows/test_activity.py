"""The activity log and what it adds up to."""

import re

import pytest

from tests.workflows.conftest import Service, at_the_door


async def test_actions_are_logged_and_counted(service: Service) -> None:
    """Every accepted action is in the log and in the numbers."""
    for action in ("login canary7f3a", "buy", "login canary7f3a"):
        jobs = await service.post("/user/7/action", params={"action": action})
        assert [job["task"] for job in jobs] == ["log_user_activity", "update_user_statistics"]

    log = (await service.http.get("/user/7/activity")).json()
    statistics = (await service.http.get("/user/7/statistics")).json()
    assert [item["action"] for item in log["items"]] == ["login canary7f3a", "buy", "login canary7f3a"]
    assert (statistics["total"], statistics["by_action"]) == (3, {"buy": 1, "login canary7f3a": 2})
    assert sum(statistics["by_day"].values()) == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", statistics["first_seen"])
    assert statistics["first_seen"] <= statistics["last_seen"]


async def test_the_log_is_read_in_pages(service: Service) -> None:
    """Newest first; ``next`` leads on and is null at the end."""
    for action in ("a", "b", "c"):
        await service.post("/user/7/action", json={"action": action})

    first = (await service.http.get("/user/7/activity", params={"limit": 2})).json()
    second = (await service.http.get("/user/7/activity", params={"limit": 2, "cursor": first["next"]})).json()

    assert [item["action"] for item in first["items"] + second["items"]] == ["c", "b", "a"]
    assert second["next"] is None


@at_the_door
async def test_a_user_without_activity_has_empty_statistics(door: Service) -> None:
    """Nothing is not an error."""
    statistics = (await door.http.get("/user/8/statistics")).json()

    assert (statistics["total"], statistics["first_seen"], statistics["last_seen"]) == (0, None, None)


@at_the_door
@pytest.mark.parametrize(
    "user",
    [
        *("abc", "0", "-1", "1.5", str(2**63), "%F0%9F%99%82"),
        *(
            "1_0",
            "+7",
            "%2B7",
            "%207",
            "7%20",
            "7%0A",
            "%097",
            "7.0",
            "7e0",
            "0x7",
            "007",
            "%D9%A7",
            "%EF%BC%97",
            "%C2%B2",
        ),
    ],
)
async def test_a_user_id_has_one_form(door: Service, user: str) -> None:
    """422 wherever a user is named otherwise: one user has one address, whatever ``int`` would take for a number."""
    posted = await door.http.post(f"/user/{user}/action", params={"action": "login canary7f3a"})
    read = await door.http.get(f"/user/{user}/statistics")

    assert (posted.status_code, read.status_code) == (422, 422)
    assert posted.json()["errors"][0]["loc"] == ["path", "user_id"]


@at_the_door
@pytest.mark.parametrize("query", ["limit=0", "limit=501", "cursor=x", "cursor=-1", f"cursor={'9' * 30}"])
async def test_a_bad_page_is_refused(door: Service, query: str) -> None:
    """422, never an empty page."""
    assert (await door.http.get(f"/user/7/activity?{query}")).status_code == 422


@at_the_door
@pytest.mark.parametrize("action", ["", " ", "a\nb", "a\0b", "x" * 256])
async def test_a_bad_action_is_refused(door: Service, action: str) -> None:
    """An action is one line of text."""
    assert (await door.http.post("/user/7/action", params={"action": action})).status_code == 422


async def test_a_body_may_repeat_the_path(service: Service) -> None:
    """As the payload of our own webhook does."""
    jobs = await service.post("/user/7/action", json={"user_id": 7, "action": "external_fetch_triggered"})

    assert [job["state"] for job in jobs] == ["succeeded", "succeeded"]


@at_the_door
async def test_a_body_may_not_contradict_the_path(door: Service) -> None:
    """422 names the field."""
    answer = await door.http.post("/user/7/action", json={"user_id": 8, "action": "login canary7f3a"})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", "user_id"]
