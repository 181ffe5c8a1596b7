"""A request that is sent again with its ``Idempotency-Key`` is the jobs it was, on every route that makes any."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from asyncbg.service.server import create_app
from asyncbg.settings import Settings
from asyncbg.testing import WebPeer
from tests.workflows.conftest import Service

ROUTES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "notification": ("/send-notification/ada.canary7f3a@canary7f3a.example", {"json": {"message": "a"}}, {"json": {}}),
    "process": ("/process/canary7f3a", {}, {}),
    "email": (
        "/send-email/",
        {"json": {"to_email": "ada.canary7f3a@canary7f3a.example", "subject": "s", "body": "b"}},
        {"json": {"to_email": "bob.canary7f3a@canary7f3a.example", "subject": "s", "body": "b"}},
    ),
    "upload": (
        "/upload-csv/7",
        {"files": {"file": ("a.csv", b"a\n1\n", "text/csv")}},
        {"files": {"file": ("a.csv", b"a\n2\n", "text/csv")}},
    ),
    "activity": ("/user/7/action", {"params": {"action": "a"}}, {"params": {"action": "b"}}),
    "fetch": (
        "/trigger-external-fetch/7",
        {"json": {"data_url": "http://127.0.0.1:9/", "webhook_url": "http://127.0.0.1:9/"}},
        {"json": {"data_url": "http://127.0.0.1:9/", "webhook_url": "http://127.0.0.1:9/x"}},
    ),
    "safe": ("/safe-task/7", {"json": {"message": "m"}}, {"json": {"message": "n"}}),
    "injected": ("/action/7", {"json": {"action": "a"}}, {"json": {"action": "b"}}),
}
"""Each path, a request to it, and another one."""


def ids(answer: Any) -> list[str]:
    """The jobs of an answer."""
    assert answer.status_code == 202, answer.text
    return [job["id"] for job in answer.json()["jobs"]]


@pytest.mark.parametrize("name", ROUTES)
async def test_a_repeat_is_the_same_jobs(service: Service, name: str) -> None:
    """Sent three times, twice of them at once: one set of jobs; the answers name it, and the first job is Location."""
    path, request, _ = ROUTES[name]
    headers = {"Idempotency-Key": "order 7"}

    at_once = await asyncio.gather(*(service.http.post(path, headers=headers, **request) for _ in range(2)))
    later = await service.http.post(path, headers=headers, **request)

    answers = [*at_once, later]
    assert len({tuple(ids(answer)) for answer in answers}) == 1
    assert {answer.headers["location"] for answer in answers} == {f"/jobs/{ids(later)[0]}"}
    stored = (await service.http.get("/jobs", params={"limit": 200})).json()["items"]
    assert sorted(job["id"] for job in stored) == sorted(ids(later))


@pytest.mark.parametrize("name", [name for name in ROUTES if name != "process"])
async def test_another_request_under_the_same_key_is_refused(service: Service, name: str) -> None:
    """422, nothing is stored, and neither the key nor what was sent is repeated."""
    path, request, other = ROUTES[name]
    headers = {"Idempotency-Key": "canary7f3a-key"}
    first = ids(await service.http.post(path, headers=headers, **request))

    refused = await service.http.post(path, headers=headers, **other)

    assert (refused.status_code, refused.json()["title"]) == (422, "Idempotency key reused")
    assert "canary7f3a-key" not in refused.text
    stored = (await service.http.get("/jobs", params={"limit": 200})).json()["items"]
    assert {job["id"] for job in stored} == set(first)


async def test_a_key_belongs_to_one_request_of_any_route(service: Service) -> None:
    """Also where another route made the jobs."""
    headers = {"Idempotency-Key": "one"}
    ids(await service.http.post("/process/x", headers=headers))
    for path, request in (
        ("/process/y", {}),
        ("/user/7/action", {"json": {"action": "a"}}),
        ("/jobs", {"json": {"task": "cleanup_task", "args": {"name": "x"}}}),
    ):
        assert (await service.http.post(path, headers=headers, **request)).status_code == 422, path


async def test_without_a_key_every_request_is_its_own(service: Service) -> None:
    """As ever."""
    first, second = [ids(await service.http.post("/process/x")) for _ in range(2)]

    assert not set(first) & set(second)


async def test_what_a_repeat_brought_is_removed(service: Service) -> None:
    """A file that came before is not imported again, and does not stay on the disk; nor one that is refused."""
    path, request, other = ROUTES["upload"]
    headers = {"Idempotency-Key": "file"}
    (job,) = ids(await service.http.post(path, headers=headers, **request))
    await service.final(job)
    for sent in (request, other):
        await service.http.post(path, headers=headers, **sent)

    assert service.uploads == []
    imports = (await service.http.get("/user/7/imports")).json()["items"]
    assert [one["rows_stored"] for one in imports] == [1]
    assert [ids(await service.http.post("/upload-csv/8", **request, headers={"Idempotency-Key": "8"}))] != [[job]]


async def test_a_job_that_ended_is_answered_as_it_is(service: Service, bg_web: WebPeer) -> None:
    """The states of a repeat are those of now."""
    headers = {"Idempotency-Key": "again"}
    for job in ids(await service.http.post("/process/x", headers=headers)):
        await service.final(job)

    told = (await service.http.post("/process/x", headers=headers)).json()["jobs"]

    assert {job["state"] for job in told} == {"succeeded"}


async def test_a_tracked_task_is_started_once(service: Service) -> None:
    """Its id is a key by itself: taken, 409; but for the request that took it, when it is sent again."""
    path, key = "/start-task/report-1?items_count=2", {"Idempotency-Key": "k"}
    first = await service.http.post(path, headers=key)

    again = await service.http.post(path, headers=key)

    assert again.status_code == 202
    assert again.json()["jobs"][0]["id"] == first.json()["jobs"][0]["id"]
    for other, headers in ((path, {}), (path, {"Idempotency-Key": "l"}), (path.replace("=2", "=3"), key)):
        assert (await service.http.post(other, headers=headers)).status_code == 409
    await service.http.post("/start-task/other?items_count=2")
    assert (await service.http.post("/start-task/other?items_count=2", headers=key)).status_code == 409


@pytest.mark.parametrize("key", ["", "é", "x" * 256])
async def test_a_key_has_a_form(service: Service, key: str) -> None:
    """1 to 255 printable characters of ASCII; anything else is refused before a file is taken."""
    path, request, _ = ROUTES["upload"]

    answer = await service.http.post(path, headers={b"Idempotency-Key": key.encode("latin-1")}, **request)

    assert answer.status_code == 422
    assert service.uploads == []


def test_every_route_that_makes_jobs_documents_the_key(settings: Settings) -> None:
    """A walk over the OpenAPI document."""
    app: FastAPI = create_app(settings)
    making = {
        path: operation
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
        if method == "post" and "202" in operation["responses"] and not path.endswith(("/cancel", "/retry"))
    }

    assert len(making) == 10
    for path, operation in making.items():
        named = [(one["name"], one["in"]) for one in operation["parameters"]]
        assert named.count(("Idempotency-Key", "header")) == 1, path
