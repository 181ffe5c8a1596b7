"""Tasks chosen by name, whose errors stay with their jobs."""

import pytest

from tests.workflows.conftest import Service, at_the_door


async def test_both_tasks_run(service: Service) -> None:
    """The user is notified, then the clean-up runs."""
    jobs = await service.post("/safe-task/7", params={"message": "your report is ready, canary7f3a"})

    assert [(job["task"], job["state"]) for job in jobs] == [
        ("send_notification_task", "succeeded"),
        ("cleanup", "succeeded"),
    ]
    assert service.log == ["notification for user 7: your report is ready, canary7f3a"]


async def test_an_error_is_recorded_announced_and_retried(service: Service) -> None:
    """The server goes on, the job says what went wrong, and when the cause is gone the next attempt succeeds."""
    in_the_way = service.settings.data_dir / "notifications.log"
    in_the_way.mkdir(parents=True)
    answer = await service.http.post("/safe-task/7", params={"message": "hello canary7f3a"})
    job_id = answer.json()["jobs"][0]["id"]

    events = await service.events(job_id, until="job.retrying")
    in_the_way.rmdir()

    assert events[-1]["data"]["error"]["type"] == "NoticeError"
    assert (await service.final(job_id))["state"] == "succeeded"


async def test_data_is_processed_between_them(service: Service) -> None:
    """With ``data_id``, in the query or in the body, the task ``process_data_task`` runs too."""
    jobs = await service.post("/safe-task/7", json={"message": "hello canary7f3a", "data_id": 42})

    assert [job["task"] for job in jobs] == ["send_notification_task", "process_data_task", "cleanup"]
    assert (jobs[1]["state"], jobs[1]["result"]) == ("succeeded", {"data_id": 42})


@pytest.mark.parametrize("data_id", [0, -1])
async def test_an_invalid_data_id_is_an_error_of_its_job(service: Service, data_id: int) -> None:
    """Recorded and announced, and the clean-up runs all the same; so over ``POST /jobs``."""
    jobs = await service.post("/safe-task/7", params={"message": "hello canary7f3a", "data_id": str(data_id)})
    [job] = await service.post("/jobs", json={"task": "process_data_task", "args": {"data_id": data_id}})

    assert [one["state"] for one in jobs] == ["succeeded", "failed", "succeeded"]
    assert (
        job["error"]
        == jobs[1]["error"]
        == {"type": "ValueError", "message": f"invalid data ID {data_id}; ids begin with 1"}
    )
    assert "job.failed" in [event["type"] for event in await service.events(job["id"])]


@at_the_door
async def test_the_message_is_required(door: Service) -> None:
    """422 without one."""
    assert (await door.http.post("/safe-task/7")).status_code == 422
