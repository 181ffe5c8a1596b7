"""What is somebody's is nobody else's: not there, wherever it is looked for."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx

from asyncbg.auth.api_key import Scope
from asyncbg.testing import SmtpSink
from tests.auth.conftest import House, Street
from tests.documents import frames
from tests.workflows.conftest import with_mail

TASK_ID = "report-of-ada"


async def submitted(client: httpx.AsyncClient, path: str, **request: Any) -> str:
    """The first job that a request became, once all of them are final."""
    answer = await client.post(path, **request)
    assert answer.status_code == 202, answer.text
    for job in answer.json()["jobs"]:
        await client.get(f"/jobs/{job['id']}", params={"wait": 20})
    return str(answer.json()["jobs"][0]["id"])


def calls(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every operation that takes the id of something that is somebody's."""
    for path, item in document["paths"].items():
        if re.search(r"\{(job_id|task_id|batch|id)\}", path):
            yield from ((method.upper(), path) for method in item)


async def test_every_route_with_the_others_ids_answers_404(house: House) -> None:
    """A walk over the OpenAPI document: looked at, waited for, cancelled, retried, streamed: it is not there."""
    ada, bob = await house.enter("ada"), await house.enter("bob")
    job = await submitted(ada, "/process/x-canary7f3a")
    await submitted(ada, f"/start-task/{TASK_ID}?items_count=1")
    document = (await bob.get("/openapi.json")).json()
    walked = [call for call in calls(document) if call != ("POST", "/start-task/{task_id}")]
    assert len(walked) >= 5

    for method, path in walked:
        url = path.format(job_id=job, task_id=TASK_ID)
        theirs = await bob.request(method, url)
        nobodys = await bob.request(method, path.format(job_id=job[:-1] + "0", task_id="nothing"))
        assert theirs.status_code == 404, (method, path)
        told = {**nobodys.json(), "instance": path.format(job_id=job, task_id="{task_id}")}
        assert theirs.json() == told, "a foreign id is told from one that never was"
    assert (await bob.get(f"/jobs/{job}", params={"wait": 5})).status_code == 404
    assert (await bob.get(f"/jobs/{job}/events", headers={"Last-Event-ID": "x-1"})).status_code == 404
    assert (await ada.get(f"/jobs/{job}")).json()["state"] == "succeeded"


async def test_lists_hold_only_what_is_ones_own(house: House) -> None:
    """By any filter: state, task, batch, tag, and another owner's name, which finds nothing."""
    ada, bob = await house.enter("ada"), await house.enter("bob")
    job = await submitted(ada, "/process/x-canary7f3a")
    own = await submitted(bob, "/process/y-canary7f3a")

    for query in ("", "?owner=ada", f"?batch={job}", "?task=slow_task_1", "?state=succeeded", "?limit=200"):
        items = (await bob.get(f"/jobs{query}")).json()["items"]
        assert all(item["owner"] == "bob" for item in items), query
    assert (await bob.get("/jobs?owner=ada")).json() == {"items": [], "next": None}
    assert len((await bob.get("/jobs?owner=bob")).json()["items"]) == 3
    assert len((await bob.get(f"/jobs?batch={own}")).json()["items"]) == 3


async def test_streams_tell_only_what_is_ones_own(house: House) -> None:
    """Stored and replayed, filtered by job, batch, task and owner, and after a cursor that the log does not reach."""
    ada, bob = await house.enter("ada"), await house.enter("bob")
    job = await submitted(ada, "/process/x-canary7f3a")
    await submitted(bob, "/process/y-canary7f3a")
    start = re.search(r"id: (\w+)-", (await bob.get("/events?follow=false")).text)
    assert start is not None

    for query in ("", f"&job={job}", f"&batch={job}", "&task=slow_task_1", "&owner=ada", "&type=job.*"):
        for cursor in (None, f"{start[1]}-0", "malformed", f"{start[1]}-999999"):
            headers = {"Last-Event-ID": cursor} if cursor else {}
            text = (await bob.get(f"/events?follow=false{query}", headers=headers)).text
            assert '"owner":"ada"' not in text, (query, cursor)
            assert job not in text, (query, cursor)
    sent = frames((await ada.get("/events?follow=false&owner=ada")).text)
    assert len(sent) > 5


async def test_live_events_reach_their_owner_only(house: House) -> None:
    """Two streams are open while both work; each tells of one."""
    ada, bob = await house.enter("ada"), await house.enter("bob")
    async with ada.stream("GET", "/events?type=job.succeeded") as hers, bob.stream("GET", "/events") as his:
        lines, other = hers.aiter_lines(), his.aiter_lines()
        await anext(lines), await anext(other)
        await submitted(bob, "/process/y-canary7f3a")
        await submitted(ada, "/process/x-canary7f3a")
        async with asyncio.timeout(20):
            told = [line async for line in _until(lines, "cleanup_task")]
            heard = [line async for line in _until(other, "job.succeeded", "cleanup_task")]

    assert not any('"owner":"bob"' in line for line in told)
    assert not any('"owner":"ada"' in line for line in heard)


async def _until(lines: Any, *words: str) -> Any:
    async for line in lines:
        yield line
        if line.startswith("data:") and all(word in line for word in words):
            return


async def test_users_activity_and_imports_are_each_owners_own(house: House) -> None:
    """User 7 of one key is not user 7 of another; the admin sees what both recorded."""
    ada, bob, root = await house.enter("ada"), await house.enter("bob"), await house.enter("root", Scope.ADMIN)
    await submitted(ada, "/user/7/action", json={"action": "login canary7f3a"})
    await submitted(ada, "/action/7", json={"action": "signup canary7f3a"})
    await submitted(ada, "/upload-csv/7", files={"file": ("people.csv", b"name\nAda canary7f3a\n", "text/csv")})
    await submitted(bob, "/user/7/action", json={"action": "look"})

    assert [one["action"] for one in (await bob.get("/user/7/activity")).json()["items"]] == ["look"]
    assert (await bob.get("/user/7/statistics")).json()["by_action"] == {"look": 1}
    assert (await bob.get("/user/7/imports")).json()["items"] == []
    assert (await ada.get("/user/7/statistics")).json()["by_action"] == {"login canary7f3a": 1, "signup canary7f3a": 1}
    assert len((await ada.get("/user/7/imports")).json()["items"]) == 1
    assert (await root.get("/user/7/statistics")).json()["total"] == 3
    assert len((await root.get("/user/7/imports")).json()["items"]) == 1


async def test_names_and_keys_are_each_owners_own(house: House) -> None:
    """A tracked task's id and an idempotency key that one owner used are free for another."""
    ada, bob = await house.enter("ada"), await house.enter("bob")
    body, once = {"task": "cleanup_task", "args": {"name": "x-canary7f3a"}}, {"Idempotency-Key": "same"}

    jobs = {(await one.post("/jobs", json=body, headers=once)).json()["jobs"][0]["id"] for one in (ada, bob, ada)}
    assert len(jobs) == 2
    for client, count in ((ada, 1), (bob, 2)):
        assert (await client.post(f"/start-task/{TASK_ID}?items_count={count}")).status_code == 202
        assert (await client.post(f"/start-task/{TASK_ID}?items_count={count}")).status_code == 409
    assert [(await one.get(f"/task-progress/{TASK_ID}")).json()["total"] for one in (ada, bob)] == [1, 2]


async def test_every_workflow_hands_its_jobs_to_the_caller(house: House) -> None:
    """One of each: no job is left to ``anonymous``."""
    ada = await house.enter("ada")
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/send-notification/a.canary7f3a@canary7f3a.example", {}),
        ("/process/x-canary7f3a", {}),
        ("/send-email/", {"json": {"to_email": "a.canary7f3a@canary7f3a.example", "subject": "s", "body": "b"}}),
        ("/upload-csv/7", {"files": {"file": ("a.csv", b"a\n1\n", "text/csv")}}),
        ("/user/7/action", {"json": {"action": "a"}}),
        (
            "/trigger-external-fetch/7",
            {"json": {"data_url": "http://127.0.0.1:9/", "webhook_url": "http://127.0.0.1:9/"}},
        ),
        ("/safe-task/7", {"json": {"message": "m"}}),
        ("/start-task/t?items_count=1", {}),
        ("/action/7", {"json": {"action": "a"}}),
        ("/jobs", {"json": {"task": "cleanup_task", "args": {"name": "x-canary7f3a"}}}),
    ]
    jobs = []
    for path, request in requests:
        answer = await ada.post(path, **request)
        assert answer.status_code == 202, path
        jobs += answer.json()["jobs"]
    root = await house.enter("root", Scope.ADMIN)

    items = (await root.get("/jobs?limit=200")).json()["items"]
    assert len(items) == len(jobs)
    assert {item["owner"] for item in items} == {"ada"}


async def test_an_attachment_goes_with_the_mails_of_its_owner_only(street: Street, bg_smtp: SmtpSink) -> None:
    """Somebody else who knows its path cannot send the file, by neither route."""
    house = await street.build(with_mail(street.settings(), bg_smtp))
    ada, bob = await house.enter("ada"), await house.enter("bob")
    upload = await ada.post("/attachments", files={"file": ("a.txt", b"canary7f3a")})
    mail = {"to_email": "ada.canary7f3a@canary7f3a.example", "subject": "Hi", "body": "x"}
    mail_with_file = mail | {"attachments": [upload.json()["path"]]}

    refused = await bob.post("/send-email/", json=mail_with_file)
    [submitted] = (await bob.post("/jobs", json={"task": "send_email", "args": mail_with_file})).json()["jobs"]
    failed = (await bob.get(f"/jobs/{submitted['id']}", params={"wait": 15})).json()
    [accepted] = (await ada.post("/send-email/", json=mail_with_file)).json()["jobs"]
    sent = (await ada.get(f"/jobs/{accepted['id']}", params={"wait": 15})).json()

    assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["body", "attachments"])
    assert (failed["state"], failed["error"]["type"]) == ("failed", "AttachmentError")
    assert sent["state"] == "succeeded"
    assert [message.content.count(b"a.txt") > 0 for message in bg_smtp.messages] == [True]


async def test_the_admin_sees_and_steers_everything(house: House) -> None:
    """All owners in lists and streams, or one of them; another's job is cancelled and stays its owner's."""
    ada, root = await house.enter("ada"), await house.enter("root", Scope.ADMIN)
    later = {"task": "cleanup_task", "args": {"name": "x-canary7f3a"}, "delay_s": 3600}
    job = (await ada.post("/jobs", json=later)).json()["jobs"][0]["id"]

    assert (await root.post(f"/jobs/{job}/cancel")).status_code == 202
    assert (await ada.get(f"/jobs/{job}")).json()["state"] == "cancelled"
    assert [item["id"] for item in (await root.get("/jobs?owner=ada")).json()["items"]] == [job]
    assert '"owner":"ada"' in (await root.get("/events?follow=false&owner=ada")).text


async def test_a_quota_is_each_owners_own(street: Street) -> None:
    """What one owner has waiting takes no room from another."""
    base = street.settings()
    settings = base.model_copy(update={"runner": base.runner.model_copy(update={"max_queued_per_owner": 1})})
    house = await street.build(settings)
    ada, bob = await house.enter("ada"), await house.enter("bob")
    later = {"task": "cleanup_task", "args": {"name": "x-canary7f3a"}, "delay_s": 3600}

    assert (await ada.post("/jobs", json=later)).status_code == 202
    assert (await ada.post("/jobs", json=later)).status_code == 429
    assert (await ada.post("/process/x-canary7f3a")).status_code == 429
    assert (await bob.post("/jobs", json=later)).status_code == 202
