"""The three-step process: in order, visible, and cleaned up after whatever happened."""

import pytest

from tests.workflows.conftest import Service, at_the_door


async def test_the_steps_run_in_order(service: Service) -> None:
    """Each job starts after the one before it ended, and all succeed."""
    jobs = await service.post("/process/report")

    assert [job["task"] for job in jobs] == ["slow_task_1", "slow_task_2", "cleanup_task"]
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert [job["result"] for job in jobs] == [{"steps": 2}, {"steps": 3}, {"files_removed": 2}]
    assert jobs[0]["finished_at"] <= jobs[1]["started_at"] <= jobs[1]["finished_at"] <= jobs[2]["started_at"]


async def test_a_step_tells_how_far_it_is(service: Service) -> None:
    """Progress is streamed while the step runs and kept on the job when it is over."""
    [slow, *_] = await service.post("/process/report")

    assert slow["progress"] == {"current": 2, "total": 2, "message": "2 steps done", "unit": "steps"}
    assert "job.progress" in [event["type"] for event in await service.events(slow["id"])]


async def test_the_clean_up_runs_though_a_step_was_stopped(service: Service) -> None:
    """A batch goes on after a job that did not succeed."""
    answer = await service.http.post("/process/report")
    first, second, cleanup = (job["id"] for job in answer.json()["jobs"])
    await service.http.post(f"/jobs/{first}/cancel")

    states = [(await service.final(job_id))["state"] for job_id in (first, second, cleanup)]

    assert states == ["cancelled", "succeeded", "succeeded"]
    assert list((service.settings.data_dir / "work").iterdir()) == []


@at_the_door
@pytest.mark.parametrize("name", ["%00", "%0a", "x" * 256, "%20"])
async def test_a_bad_name_is_refused(door: Service, name: str) -> None:
    """A name is one line that says something."""
    answer = await door.http.post(f"/process/{name}")

    assert answer.status_code == 422
