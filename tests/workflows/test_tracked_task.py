"""Long tasks under names of the caller's own."""

import pytest

from tests.workflows.conftest import Service, at_the_door


async def test_a_task_is_followed_by_its_name(service: Service) -> None:
    """The answer says where to ask; the end is told with all items counted."""
    answer = await service.http.post("/start-task/report-1", params={"items_count": 5})
    body = answer.json()
    assert (answer.status_code, body["task_id"]) == (202, "report-1")
    assert body["check_progress_url"] == "/task-progress/report-1"
    assert answer.headers["location"] == body["jobs"][0]["url"]

    job = await service.final(body["jobs"][0]["id"])

    progress = (await service.http.get(body["check_progress_url"])).json()
    assert (job["task"], job["result"]) == ("long_running_task", {"items": 5})
    assert progress == {"status": "completed", "progress": 5, "total": 5, "message": "item 5 of 5 done"}


async def test_a_running_task_shows_where_it_is(service: Service) -> None:
    """Between the first and the last item the status is running."""
    answer = await service.http.post("/start-task/long", params={"items_count": 1_000_000})
    job_id = answer.json()["jobs"][0]["id"]
    await service.events(job_id, until="job.progress")

    progress = (await service.http.get("/task-progress/long")).json()
    assert progress["status"] == "running"
    assert progress["progress"] < progress["total"] == 1_000_000

    await service.http.post(f"/jobs/{job_id}/cancel", json={"reason": "enough"})
    await service.final(job_id)
    progress = (await service.http.get("/task-progress/long")).json()
    assert (progress["status"], progress["message"]) == ("cancelled", "enough")


async def test_a_taken_name_is_a_conflict(service: Service) -> None:
    """409, while the task runs and after it, whatever the count; nothing is started."""
    await service.post("/start-task/once", params={"items_count": 1})

    answer = await service.http.post("/start-task/once", params={"items_count": 2})

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert len((await service.http.get("/jobs")).json()["items"]) == 1


@at_the_door
async def test_an_unknown_name_is_not_found(door: Service) -> None:
    """404 as a problem document."""
    answer = await door.http.get("/task-progress/nobody")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@at_the_door
@pytest.mark.parametrize("count", ["0", "-1", "1000001", "1e3", "1.5", "many", "", "9" * 400])
async def test_a_bad_count_is_refused(door: Service, count: str) -> None:
    """422, and the name stays free."""
    answer = await door.http.post("/start-task/free", params={"items_count": count})

    assert answer.status_code == 422
    assert (await door.http.get("/task-progress/free")).status_code == 404


@at_the_door
async def test_the_count_is_required(door: Service) -> None:
    """422 without one."""
    assert (await door.http.post("/start-task/free")).status_code == 422


@at_the_door
async def test_the_count_is_bounded_behind_the_other_door_too(door: Service) -> None:
    """A job submitted by its task's name is held to the same bounds."""
    job = {"task": "long_running_task", "args": {"task_id": "x", "items_count": 10**9}}

    assert (await door.http.post("/jobs", json=job)).status_code == 422


@at_the_door
@pytest.mark.parametrize("name", ["a b", "%C3%A4", "x" * 65, "a%0a", "a:b"])
async def test_a_bad_name_is_refused(door: Service, name: str) -> None:
    """Letters, digits, dot, underscore and hyphen, at most 64."""
    assert (await door.http.post(f"/start-task/{name}", params={"items_count": 1})).status_code == 422
